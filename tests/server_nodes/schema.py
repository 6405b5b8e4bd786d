"""What the schemas of all test nodes share."""

from typing import ClassVar

from comfy_api.latest import io


class TestNode(io.ComfyNode):
    """A node whose id is the name of its class, with the inputs and outputs that the class lists."""

    INPUTS: ClassVar[list] = []
    OUTPUTS: ClassVar[list] = []
    MORE: ClassVar[dict] = {}  # further arguments of the schema

    @classmethod
    def define_schema(cls) -> io.Schema:
        given = {"display_name": cls.__name__, "inputs": cls.INPUTS, "outputs": cls.OUTPUTS}
        return io.Schema(node_id=cls.__name__, category="tests", **given | cls.MORE)


class NeverCached(TestNode):
    """A node that runs again in every prompt."""

    @classmethod
    def fingerprint_inputs(cls, **_) -> float:
        return float("nan")
