"""A node that shortens a text for benchmarks."""

from comfy_api.latest import io

from .schema import TestNode


class TestFirstTokens(TestNode):
    """The first `count` tokens of a text, which keeps cross-attention fast on a CPU."""

    INPUTS = [io.Conditioning.Input("conditioning"), io.Int.Input("count", default=8, min=1)]
    OUTPUTS = [io.Conditioning.Output()]

    @classmethod
    def execute(cls, conditioning: list, count: int) -> io.NodeOutput:
        return io.NodeOutput([[context[:, :count], options] for context, options in conditioning])


NODES = [TestFirstTokens]
