"""A look into the server's process, and a shorter text for benches."""

import threading

import psutil
from comfy_api.latest import io


class TestProcess(io.ComfyNode):
    """What the server's process holds now: the names of its threads and the files it has open."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestProcess",
            display_name="Test Process",
            category="tests",
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        threads = [thread.name for thread in threading.enumerate()]
        files = [file.path for file in psutil.Process().open_files()]
        return io.NodeOutput(ui={"text": [*threads, *files]})


class TestFirstTokens(io.ComfyNode):
    """The first tokens of a text: a CPU multiplies all 512 of them with every block's weights."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestFirstTokens",
            display_name="Test First Tokens",
            category="tests",
            inputs=[io.Conditioning.Input("conditioning"), io.Int.Input("count", default=8, min=1)],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, conditioning: list, count: int) -> io.NodeOutput:
        return io.NodeOutput([[context[:, :count], options] for context, options in conditioning])


NODES = [TestProcess, TestFirstTokens]
