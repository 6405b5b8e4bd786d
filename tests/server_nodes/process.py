"""Nodes that show the state of the server's process, and that shorten a text for benchmarks."""

import threading

import psutil
from comfy_api.latest import io

from .schema import TestNode


class TestProcess(TestNode):
    """Shows the names of the server's threads and the files that it has open."""

    MORE = {"is_output_node": True, "not_idempotent": True}

    @classmethod
    def execute(cls) -> io.NodeOutput:
        threads = [thread.name for thread in threading.enumerate()]
        files = [file.path for file in psutil.Process().open_files()]
        return io.NodeOutput(ui={"text": [*threads, *files]})


class TestFirstTokens(TestNode):
    """The first `count` tokens of a text, which keeps cross-attention fast on a CPU."""

    INPUTS = [io.Conditioning.Input("conditioning"), io.Int.Input("count", default=8, min=1)]
    OUTPUTS = [io.Conditioning.Output()]

    @classmethod
    def execute(cls, conditioning: list, count: int) -> io.NodeOutput:
        return io.NodeOutput([[context[:, :count], options] for context, options in conditioning])


NODES = [TestProcess, TestFirstTokens]
