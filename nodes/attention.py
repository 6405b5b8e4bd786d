"""Choosing the attention of a model."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..turbo_core.attention import DEFAULT_TOPK, MODES, Mode
from ..turbo_core.host.attention_patch import with_attention
from ..turbo_core.host.kernels_ahead import compile_kernels
from .loader import CATEGORY


class TurboDiffusionSLA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionSLA",
            display_name="TurboDiffusion SLA",
            category=CATEGORY,
            description="Sets a model's self-attention: sparse-linear, as TurboWan was trained, or dense. Without "
            "this node the loader's model runs mode auto with topk 0.1.",
            search_aliases=["sparse attention", "sparse linear attention", "SageSLA", "attention"],
            inputs=[
                io.Model.Input("model", tooltip="A model from TurboDiffusion Loader."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="auto",
                    tooltip="auto: sparse-linear if the checkpoint was trained for it, in 8 bits where that is faster "
                    "(TurboDiffusion Status says which and why), else dense. sla: sparse-linear attention in 16 bits. "
                    "sagesla: the same with sage attention in 8 bits, less exact. "
                    "dense: full attention; a checkpoint trained for SLA gives worse videos with it.",
                ),
                io.Float.Input(
                    "topk",
                    default=DEFAULT_TOPK,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Top-k: the share of key blocks that each query block attends to. The models were trained "
                    "with 0.1; 0.15 is slower and a little better.",
                ),
                io.String.Input(
                    "dense_blocks",
                    default="",
                    advanced=True,
                    tooltip="Transformer blocks that stay dense, for example 0,38-39. Empty: none.",
                ),
                io.Boolean.Input(
                    "allow_untrained",
                    default=False,
                    advanced=True,
                    tooltip="Run sla or sagesla on a checkpoint without trained proj_l, with the sparse branch only. "
                    "Videos get worse at a low topk.",
                ),
                io.Int.Input(
                    "dense_steps",
                    default=0,
                    min=0,
                    max=10000,
                    optional=True,
                    advanced=True,
                    tooltip="How many steps at the start of each run stay dense in every block. They decide the "
                    "layout: a few of them help a model without trained proj_l. 0: none.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with that attention; the input model is unchanged.")],
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        mode: Mode,
        topk: float,
        dense_blocks: str,
        allow_untrained: bool,
        dense_steps: int = 0,
    ) -> io.NodeOutput:
        changed = with_attention(model, mode, topk, dense_blocks, allow_untrained, dense_steps)
        compile_kernels(changed)
        return io.NodeOutput(changed)
