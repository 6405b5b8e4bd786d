"""The toy world's node on a live server: its text encoder."""

from comfy_api.latest import ComfyExtension, io, ui

from . import toy_text


class TestToyWorldText(io.ComfyNode):
    """The toy world's stand-in for umT5; the node shows the defaults that it filled in."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestToyWorldText",
            display_name="Toy World Text (a stand-in, not umT5)",
            category="tests",
            inputs=[io.String.Input("text", multiline=True)],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        embedding, notes = toy_text.encode(text)
        return io.NodeOutput([[embedding, {}]], ui=ui.PreviewText("\n".join(notes)) if notes else None)


class ToyNodes(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TestToyWorldText]


async def comfy_entrypoint() -> ToyNodes:
    return ToyNodes()
