"""The report of what runs on this machine."""

from typing import Any

from comfy_api.latest import io, ui

from ..turbo_core.host.features import show_on_node
from ..turbo_core.host.status import report
from .loader import CATEGORY


class TurboDiffusionStatus(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionStatus",
            display_name="TurboDiffusion Status",
            category=CATEGORY,
            description="Reports versions, device, the backend of each operator and why faster ones do not run, "
            "memory of the models, and steps, seconds and operator calls of the last run. Link any output to its "
            "input to report after that node.",
            search_aliases=["debug", "report", "system info", "kernels"],
            inputs=[
                io.AnyType.Input(
                    "any",
                    optional=True,
                    tooltip="Anything: the report is made after the node it comes from. A latent or model also "
                    "selects the run to report.",
                )
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.String.Output(display_name="report", tooltip="The report as text.")],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def fingerprint_inputs(cls, any: Any = None) -> float:
        """Never equal, so that each prompt makes a new report."""
        return float("nan")

    @classmethod
    def execute(cls, any: Any = None) -> io.NodeOutput:
        text = report(any)
        show_on_node(cls, text.partition("\n")[0])
        return io.NodeOutput(text, ui=ui.PreviewText(text))
