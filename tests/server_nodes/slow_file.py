"""A model whose file is read from a pipe, which never ends."""

import os
import pathlib

from comfy_api.latest import io

from .schema import TestNode

SIZE = 1 << 30  # bytes


class SlowFile(type(pathlib.Path())):
    """The path of a pipe, with the size of a large file."""

    def is_file(self) -> bool:
        return True

    def stat(self, **_) -> os.stat_result:
        return os.stat_result((*os.stat(self)[:6], SIZE, 0, 0, 0))


class TestSlowFile(TestNode):
    """Makes all that read the model's file from now on read a pipe. No other prompt may use that file."""

    INPUTS = [io.Model.Input("model"), io.String.Input("pipe")]
    OUTPUTS = [io.Model.Output()]

    @classmethod
    def execute(cls, model, pipe: str) -> io.NodeOutput:
        model.model.source = SlowFile(pipe)
        return io.NodeOutput(model)


NODES = [TestSlowFile]
