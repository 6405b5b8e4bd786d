"""ComfyUI's page as a person uses it: open, look, click, drag. Everything waits for a condition, nothing for a time."""

import re
from pathlib import Path

TIMEOUT = 60_000  # ms; only ever reached by a test that fails
# Pictures of ComfyUI's own several hundred templates: decoding them takes longer than all the tests.
STOCK_PICTURES = re.compile(r"/templates/.*\.(webp|png|jpg|mp4)(\?|$)")

_SLOT = """([id, isInput, slot]) => {
    const position = app.graph.getNodeById(id).getConnectionPos(isInput, slot);
    const [x, y] = app.canvas.ds.convertOffsetToCanvas([position[0], position[1]]);
    const box = app.canvas.canvas.getBoundingClientRect();
    return [box.left + x, box.top + y];
}"""


class Page:
    def __init__(self, tab, server, pictures: Path):
        self.tab, self._server, self._pictures = tab, server, pictures
        self._complaints = []
        tab.set_default_timeout(TIMEOUT)
        tab.on("pageerror", lambda error: self._complaints.append(f"uncaught: {error}"))
        tab.on("console", self._heard)
        tab.on("response", self._answered)
        tab.route(STOCK_PICTURES, lambda route: route.abort())
        tab.goto(server.url)
        # The default workflow is the last thing that the page loads by itself.
        tab.wait_for_function("() => window.app?.extensionManager && window.app.graph?.nodes.length")

    def complaints(self) -> list[str]:
        """Uncaught errors, and console errors and failed requests that concern the pack."""
        return list(self._complaints)

    def _is_ours(self, text: str) -> bool:
        return self._server.pack_name in text

    def _heard(self, message) -> None:
        if message.type == "error" and self._is_ours(f"{message.location.get('url')} {message.text}"):
            self._complaints.append(f"console: {message.text}")

    def _answered(self, response) -> None:
        if response.status >= 400 and self._is_ours(response.url):
            self._complaints.append(f"{response.status}: {response.url}")

    def picture(self, name: str) -> None:
        self.tab.screenshot(path=self._pictures / f"{name}.png", animations="disabled")

    def load(self, prompt: dict) -> None:
        """Opens an API-format prompt, as dropping its file on the canvas does."""
        self.tab.evaluate("prompt => app.loadApiJson(prompt, 'test')", prompt)
        self.tab.wait_for_function("count => app.graph.nodes.length === count", arg=len(prompt))

    def node_types(self) -> list[str]:
        return self.tab.evaluate("() => app.graph.nodes.map(node => node.type)")

    def unknown_types(self) -> list[str]:
        """Types of nodes that the page does not know: it draws them red."""
        return [
            name
            for name in self.node_types()
            if not self.tab.evaluate("name => name in LiteGraph.registered_node_types", name)
        ]

    def node_id(self, type_name: str):
        return self.tab.evaluate("name => app.graph.nodes.find(node => node.type === name).id", type_name)

    def open_template(self, name: str) -> None:
        tab = self.tab
        tab.get_by_role("button", name="Templates", exact=True).click()
        tab.get_by_role("dialog").get_by_text(self._server.pack_name, exact=True).first.click()
        tab.get_by_test_id(f"template-workflow-{name}").click()
        tab.wait_for_function("name => app.extensionManager.workflow.activeWorkflow?.filename === name", arg=name)
        tab.get_by_role("dialog").first.wait_for(state="hidden")

    def search(self, words: str) -> list[str]:
        """Opens the search box on an empty spot and returns what it finds for the words."""
        self.tab.mouse.dblclick(600, 730)
        self.tab.get_by_role("combobox", name="Add a node...").fill(words)
        self.tab.get_by_test_id("result-item").first.wait_for()
        return [item.inner_text() for item in self.tab.get_by_test_id("result-item").all()]

    def add_found(self, title: str, type_name: str) -> None:
        """Clicks a result of `search`, then the canvas to put the node down."""
        self.tab.get_by_test_id("result-item").filter(has_text=title).first.click()
        self.tab.wait_for_function("name => app.graph.nodes.some(node => node.type === name)", arg=type_name)
        self.tab.mouse.move(640, 640)
        self.tab.mouse.click(640, 640)

    def drag_link(self, source, output: int, target, slot: int) -> None:
        start = self.tab.evaluate(_SLOT, [source, False, output])
        end = self.tab.evaluate(_SLOT, [target, True, slot])
        self.tab.mouse.move(*start)
        self.tab.mouse.down()
        self.tab.mouse.move(*end, steps=8)
        self.tab.mouse.up()
        self.tab.wait_for_function(
            "([id, slot]) => app.graph.getNodeById(id).inputs[slot].link != null", arg=[target, slot]
        )

    def run(self) -> None:
        self.tab.get_by_test_id("queue-button").click()
