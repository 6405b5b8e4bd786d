"""Nodes for the tests and the demo only: a text embedding without the 11 GB text encoder."""
import zlib

import torch
from comfy_api.latest import ComfyExtension, io

TOKENS = 512


class TestTextEmbedding(io.ComfyNode):
    """Random numbers in the shape of umt5's embedding, drawn from the text."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTextEmbedding",
            display_name="Test Text Embedding",
            category="tests",
            inputs=[
                io.String.Input("text", multiline=True),
                io.Int.Input("width", default=4096, min=1, max=1 << 16),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, text: str, width: int) -> io.NodeOutput:
        generator = torch.Generator("cpu").manual_seed(zlib.crc32(text.encode()))
        return io.NodeOutput([[torch.randn(1, TOKENS, width, generator=generator), {}]])


class TestNodes(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TestTextEmbedding]


async def comfy_entrypoint() -> TestNodes:
    return TestNodes()
