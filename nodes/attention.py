"""Choosing the attention of a model."""

from comfy_api.latest import io

from ..turbo_core.attention import DEFAULT_TOPK, MODES
from ..turbo_core.host.attention_patch import with_attention
from .loader import CATEGORY


class TurboDiffusionSLA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionSLA",
            display_name="TurboDiffusion SLA",
            category=CATEGORY,
            description="Sets a model's self-attention: sparse-linear, as TurboWan was trained, or dense. Without this node the loader's "
            "model runs mode auto with topk 0.1.",
            search_aliases=["sparse attention", "sparse linear attention", "SageSLA", "attention"],
            inputs=[
                io.Model.Input("model", tooltip="A model from TurboDiffusionLoader."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="auto",
                    tooltip="auto: sla if the checkpoint was trained for it, else dense. sla: sparse-linear attention. sagesla: its "
                    "8-bit form, faster on RTX cards and less exact. dense: full attention; on a checkpoint trained for SLA it looks worse.",
                ),
                io.Float.Input(
                    "topk",
                    default=DEFAULT_TOPK,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of key blocks each query block attends to. 0.1 is the trained value; 0.15 is slower and a "
                    "little better.",
                ),
                io.String.Input(
                    "dense_blocks",
                    default="",
                    tooltip="Transformer blocks that stay dense, for example 0,38-39. Empty: none.",
                ),
                io.Boolean.Input(
                    "allow_untrained",
                    default=False,
                    tooltip="Let sla run on a checkpoint without trained proj_l, block-sparse only. Expect worse pictures at low topk.",
                ),
                io.Int.Input(
                    "dense_steps",
                    default=0,
                    min=0,
                    max=10000,
                    optional=True,
                    tooltip="The first steps of each run that stay dense in every block. They lay out the picture: a few of them help a "
                    "model without trained proj_l. 0: none.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with that attention; the one that came in is unchanged.")],
        )

    @classmethod
    def execute(
        cls, model, mode, topk: float, dense_blocks: str, allow_untrained: bool, dense_steps: int = 0
    ) -> io.NodeOutput:
        return io.NodeOutput(with_attention(model, mode, topk, dense_blocks, allow_untrained, dense_steps))
