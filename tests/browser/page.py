"""ComfyUI's page as a person uses it: open, look, click, drag. Everything waits for a condition, nothing for a time."""

import re
from pathlib import Path

from td_pack.tests.support import locales

TIMEOUT = 120_000  # ms; only ever reached by a test that fails
# Pictures of ComfyUI's own several hundred templates: decoding them takes longer than all the tests.
STOCK_PICTURES = re.compile(r"/templates/.*\.(webp|png|jpg|mp4)(\?|$)")

_SLOT = """([id, isInput, slot]) => {
    const position = app.graph.getNodeById(id).getConnectionPos(isInput, slot);
    const [x, y] = app.canvas.ds.convertOffsetToCanvas([position[0], position[1]]);
    const box = app.canvas.canvas.getBoundingClientRect();
    return [box.left + x, box.top + y];
}"""

# Resolves when every node is on the canvas and has been in the same place for ten frames.
_SHOWS_ALL = """() => new Promise(done => {
    let before = "", same = 0;
    const look = () => {
        const [x, y, width, height] = app.canvas.ds.visible_area;
        const all = app.graph.nodes.every(({ boundingRect: [left, top, w, h] }) =>
            left >= x && top >= y && left + w <= x + width && top + h <= y + height);
        const now = [x, y, width, height].join();
        same = all && now === before ? same + 1 : 0;
        before = now;
        same >= 10 ? done(true) : requestAnimationFrame(look);
    };
    look();
})"""
# The middle of a rectangle of screen pixels on the canvas where nothing lies: no node, no link's handle, no button of
# the page.
_EMPTY = """([width, height]) => {
    const { canvas, ds } = app.canvas, box = canvas.getBoundingClientRect();
    const toScreen = ([x, y]) => ds.convertOffsetToCanvas([x, y]).map((value, i) => value + [box.left, box.top][i]);
    const taken = app.graph.nodes.map(node => {
        const [x, y, w, h] = node.boundingRect;
        return [...toScreen([x, y]), ...toScreen([x + w, y + h])];
    });
    for (const link of app.graph.links.values()) {
        const [x, y] = toScreen(link._pos);
        taken.push([x - 10, y - 10, x + 10, y + 10]);
    }
    const parts = [0, 0.25, 0.5, 0.75, 1];
    const free = (left, top) =>
        taken.every(([x0, y0, x1, y1]) => left + width < x0 || left > x1 || top + height < y0 || top > y1) &&
        parts.every(i => parts.every(j => document.elementFromPoint(left + i * width, top + j * height) === canvas));
    for (let top = box.bottom - height; top > box.top; top -= 20)  // from below on the right: that is where graphs end
        for (let left = box.right - width; left > box.left; left -= 20)
            if (free(left, top)) return [left + width / 2, top + height / 2];
    return null;
}"""
# The middle of a node's widget.
_WIDGET = """([id, name]) => {
    const node = app.graph.getNodeById(id), widget = node.widgets.find(widget => widget.name === name);
    const [x, y] = app.canvas.ds.convertOffsetToCanvas(
        [node.pos[0] + node.size[0] / 2, node.pos[1] + widget.y + 10]);
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

    def unknown_types(self) -> list[str]:
        """Types of nodes that the page does not know: it draws them red."""
        return self.tab.evaluate(
            "() => app.graph.nodes.map(node => node.type).filter(name => !(name in LiteGraph.registered_node_types))"
        )

    def exported(self) -> dict:
        """The graph in API format, as the page exports it."""
        return self.tab.evaluate("async () => (await app.graphToPrompt()).output")

    def node_id(self, type_name: str):
        return self.tab.evaluate("name => app.graph.nodes.find(node => node.type === name).id", type_name)

    def open_template(self, name: str) -> None:
        tab = self.tab
        tab.get_by_role("button", name="Templates", exact=True).click()
        tab.get_by_role("dialog").get_by_text(self._server.pack_name, exact=True).first.click()
        tab.get_by_test_id(f"template-workflow-{name}").click()
        tab.wait_for_function("name => app.extensionManager.workflow.activeWorkflow?.filename === name", arg=name)
        tab.get_by_role("dialog").first.wait_for(state="hidden")

    def fit_view(self) -> None:
        """Shows the whole graph, by the button below the canvas, and waits until the view stands still."""
        self.tab.evaluate("() => app.canvas.deselectAll()")  # the button shows what is selected, if anything is
        self.tab.locator("button:has([class*='lucide--focus'])").click()  # the icon: its name depends on the language
        self.tab.wait_for_function(_SHOWS_ALL)

    def empty_place(self, width: int = 260, height: int = 180) -> tuple[float, float]:
        """The middle of a rectangle of that size, in pixels of the screen, that shows nothing but the bare canvas.

        Waits for it: while a workflow opens, a mask lies over everything."""
        return self.tab.wait_for_function(_EMPTY, arg=[width, height]).json_value()

    def add_node(self, words: str, title: str, type_name: str):
        """Double-clicks the bare canvas, searches, picks the result of that title and puts the node down there; its
        id."""
        place = self.empty_place()
        self.tab.mouse.dblclick(*place, delay=30)  # two clicks in one millisecond are no double click to the canvas
        box = self.tab.get_by_role("combobox", name="Add a node...")
        box.fill(words)
        self.tab.get_by_test_id("result-item").filter(has_text=title).first.click()
        box.wait_for(state="hidden")  # until then it lies over the canvas, and takes the click that puts the node down
        self.tab.mouse.move(*place)
        self.tab.mouse.click(*place)
        placed = "name => app.graph.nodes.some(node => node.type === name && !node.flags.ghost)"
        self.tab.wait_for_function(placed, arg=type_name)
        return self.node_id(type_name)

    def set_language(self, language: str) -> None:
        """As the settings dialog does, and waits until a new node of ours is in it."""
        self.tab.evaluate("language => app.extensionManager.setting.set('Comfy.Locale', language)", language)
        node, widget = "TurboDiffusionSample", "steps"
        label = widget if language == "en" else locales.read(language)[node]["inputs"][widget]["name"]
        self.tab.wait_for_function(
            """([node, widget, label]) =>
                LiteGraph.createNode(node).widgets.find(each => each.name === widget).label === label""",
            arg=[node, widget, label],
        )

    def shown_widgets(self) -> set[str]:
        """The widgets of the first node that are not hidden."""
        return set(self.tab.evaluate("() => app.graph.nodes[0].widgets.filter(w => !w.hidden).map(w => w.name)"))

    def set_widget(self, node, widget: str, value: str) -> None:
        """As choosing from its list does."""
        self.tab.evaluate(
            """([id, name, value]) => {
                const node = app.graph.getNodeById(id), widget = node.widgets.find(each => each.name === name);
                widget.value = value;
                widget.callback(value, app.canvas, node);
            }""",
            [node, widget, value],
        )

    def type_number(self, node, widget: str, value: str) -> None:
        """Clicks a number widget and types another value into the box that opens."""
        drawn = "([id, name]) => app.graph.getNodeById(id).widgets.find(widget => widget.name === name).y > 0"
        self.tab.wait_for_function(drawn, arg=[node, widget])
        self.tab.mouse.click(*self.tab.evaluate(_WIDGET, [node, widget]))
        box = self.tab.locator(".graphdialog input")
        box.fill(value)
        box.press("Enter")

    def type_text(self, widget: str, text: str) -> None:
        """Clicks the text box of that name and types over what it says."""
        box = self.tab.get_by_placeholder(widget, exact=True)
        box.click()
        box.press("ControlOrMeta+a")
        self.tab.keyboard.type(text)

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
