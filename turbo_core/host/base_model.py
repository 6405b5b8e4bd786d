"""ComfyUI's Wan base model with checks of its inputs and the timestep that a TurboWan network was trained on."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_base
import torch

from ...kernels import NoBackendError, check_sparse_attention, counting
from ..checkpoint.layout import PROJ_L, WanSpec, expected_shapes
from ..errors import TurboError
from ..record import RunRecord
from ..sampling.schedule import in_first_steps
from .conditioning import check_conditioning
from .model import TurboWanModel
from .model_sampling import RCMSampling, rcm_settings
from .saving import check_side_paths

UNUSED_OVERRIDE = "attention override not used"  # in `TurboWAN.calls`
OVERRIDING_NODES = "Model Sparse Attention, Model Attention Backend"

logger = logging.getLogger("turbodiffusion")


class TurboWAN(comfy.model_base.WAN21):
    """A Wan model with its `spec`; to every stock node it is a WAN21.

    `calls` counts the calls of its last run (or, without a TurboDiffusion guider, of its runs so far): passes through
    the network, dense self-attention, every operator of `kernels` by name, the blocks' linears that were not int8, and
    sparse self-attention for which another node had set another attention (UNUSED_OVERRIDE). `last_run` is the record
    of that run if a TurboDiffusion guider ran it; `source` is the file that the weights are mapped from."""

    network_class: type[TurboWanModel] = TurboWanModel

    def __init__(self, model_config: Any, spec: WanSpec, source: Path, device: torch.device | None = None):
        few_step = spec.turbo and not spec.camera
        if few_step:  # a copy, since ComfyUI's class holds the original
            model_config.sampling_settings = rcm_settings(model_config.sampling_settings, spec)
        # WAN21's constructor fixes the network class, so BaseModel's is called.
        comfy.model_base.BaseModel.__init__(
            self, model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=self.network_class
        )
        if few_step:
            self.model_sampling = RCMSampling(model_config)
        self.image_to_video = spec.image_embedding
        self.spec, self.source = spec, source
        self.dense_steps = 0  # at the start of each run; nodes change it per model clone by an object patch
        self.calls: Counter[str] = Counter()
        self.last_run: RunRecord | None = None
        names = expected_shapes(spec)
        # The camera's linears are not counted: they run only with a camera, and once for each chunk of frames.
        others = (PROJ_L, ".cam_")
        self._linears = sum(
            len(names[k]) == 2 and k.startswith("blocks.") and not any(name in k for name in others) for k in names
        )

    def _apply_model(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        c_concat: torch.Tensor | None = None,
        c_crossattn: torch.Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] = {},  # noqa: B006 - ComfyUI's signature
        **kwargs: Any,
    ) -> torch.Tensor:
        before = self.calls["int8 linear"]
        with self._attention_of_step(t, transformer_options), counting(self.calls):
            self._check_attention(x.device)
            self.calls["network"] += 1
            dense = sum(block.self_attn.sla is None for block in self.diffusion_model.blocks)
            self.calls["dense attention"] += dense
            if transformer_options.get("optimized_attention_override") is not None:
                self._count_unused_override(len(self.diffusion_model.blocks) - dense)
            velocity = super()._apply_model(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        self.calls["float linear"] += max(0, self._linears - (self.calls["int8 linear"] - before))
        return velocity

    @contextmanager
    def _attention_of_step(self, sigma: torch.Tensor, transformer_options: dict[str, Any]) -> Iterator[None]:
        """Within the block every layer's attention is dense if this call belongs to the run's first `dense_steps`
        steps.

        It is set outside of the compiled network, in the attribute that the SLA node patches: torch.compile guards that
        one, and does not guard `transformer_options`."""
        levels = transformer_options.get("sample_sigmas")
        if not self.dense_steps or levels is None or not in_first_steps(sigma, levels, self.dense_steps):
            yield
            return
        layers = [block.self_attn for block in self.diffusion_model.blocks]
        settings = [layer.sla for layer in layers]
        try:
            for layer in layers:
                layer.sla = None
            yield
        finally:
            for layer, setting in zip(layers, settings, strict=True):
                layer.sla = setting

    def _count_unused_override(self, blocks: int) -> None:
        """Counts the blocks of a call that run sparse-linear attention although another node set the model's attention,
        which applies to dense attention only; the first time logs what to do."""
        if not blocks:
            return
        if not self.calls[UNUSED_OVERRIDE]:
            logger.warning(
                "%s: another node sets the model's attention (%s), which cannot take effect in the %d of %d blocks "
                "whose self-attention "
                "is TurboDiffusion's sparse one: take that node out, or choose dense in TurboDiffusion SLA.",
                self.source.name,
                OVERRIDING_NODES,
                blocks,
                len(self.diffusion_model.blocks),
            )
        self.calls[UNUSED_OVERRIDE] += blocks

    def _check_attention(self, device: torch.device) -> None:
        """Raises TurboError if a layer's sparse attention is unsupported on a device. Dense attention is not a
        fallback, because it computes another function: the user chooses it. Checked outside of the compiled network."""
        settings = (block.self_attn.sla for block in self.diffusion_model.blocks)
        for pv in {each.pv for each in settings if each is not None}:
            try:
                check_sparse_attention(device, pv)
            except NoBackendError as error:
                raise TurboError(
                    f"Sparse attention cannot run on {device} ({error.reasons}): set mode to dense in TurboDiffusion "
                    "SLA."
                ) from error

    def process_timestep(self, timestep: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """1000 * sigma [B], for a TurboWan network rounded to bfloat16, as in its training."""
        return timestep.to(torch.bfloat16).float() if self.spec.turbo else timestep

    def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """As ComfyUI's. Raises TurboError as `check_side_paths`, also for a patcher that is not from our loader."""
        check_side_paths(self.diffusion_model)
        return super().state_dict_for_saving(*args, **kwargs)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """As ComfyUI's. Raises TurboError as `check_conditioning`."""
        check_conditioning(self.spec, kwargs, kwargs["noise"])
        return super().extra_conds(**kwargs)
