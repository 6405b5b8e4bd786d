"""What runs on this machine."""

from comfy_api.latest import io, ui

from ..turbo_core.host.status import report
from .loader import CATEGORY


class TurboDiffusionStatus(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionStatus",
            display_name="TurboDiffusion Status",
            category=CATEGORY,
            description="Reports versions, device, which kernels run and why others do not, what the models take of memory, and steps, "
            "seconds and operator calls of the last run. Link any output to its input to have it report after that node.",
            search_aliases=["debug", "report", "system info", "kernels"],
            inputs=[
                io.AnyType.Input(
                    "any",
                    optional=True,
                    tooltip="Anything: the report is made when this has arrived. A latent or model also says which run it is about.",
                )
            ],
            outputs=[io.String.Output(display_name="report", tooltip="The report as text.")],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def fingerprint_inputs(cls, any=None) -> float:
        """Never the same: the report is about now."""
        return float("nan")

    @classmethod
    def execute(cls, any=None) -> io.NodeOutput:
        text = report(any)
        return io.NodeOutput(text, ui=ui.PreviewText(text))
