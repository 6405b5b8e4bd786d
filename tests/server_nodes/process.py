"""A look into the server's process."""

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
            inputs=[io.Int.Input("run", default=0)],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, run: int) -> io.NodeOutput:
        threads = [thread.name for thread in threading.enumerate()]
        files = [file.path for file in psutil.Process().open_files()]
        return io.NodeOutput(ui={"text": [*threads, *files]})


NODES = [TestProcess]
