"""A model whose file is on a disk so slow that reading it never ends."""

import os
import pathlib

from comfy_api.latest import io

SIZE = 1 << 30  # bytes


class SlowFile(type(pathlib.Path())):
    """A pipe that passes for a large file."""

    def is_file(self) -> bool:
        return True

    def stat(self, **_) -> os.stat_result:
        return os.stat_result((*os.stat(self)[:6], SIZE, 0, 0, 0))


class TestSlowFile(io.ComfyNode):
    """Lets the model come from a pipe, for whoever reads its file from now on. No other prompt may use that file."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestSlowFile",
            display_name="Test Slow File",
            category="tests",
            inputs=[io.Model.Input("model"), io.String.Input("pipe")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, pipe: str) -> io.NodeOutput:
        model.model.source = SlowFile(pipe)
        return io.NodeOutput(model)


NODES = [TestSlowFile]
