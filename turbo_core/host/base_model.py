"""ComfyUI's Wan base model with checks of its inputs and the timestep that a TurboWan network was trained on."""

import logging
import math
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_management
import torch

from ...kernels import NoBackendError, check_sparse_attention, counting
from ..checkpoint.layout import PROJ_L, WanSpec
from ..errors import TurboError
from ..memory import step_bytes
from ..read_ahead import ReadAhead
from ..record import RunRecord
from ..sampling.schedule import in_first_steps
from .conditioning import check_conditioning
from .kernels_ahead import wait_for_kernels
from .model import TurboWanModel, subclass_of
from .model_sampling import RCMSampling, rcm_settings
from .saving import check_side_paths
from .self_attention import TurboSelfAttention
from .side_paths import takes_side_paths
from .step_form import ADDED_TOKENS, step_form

UNUSED_OVERRIDE = "attention override not used"  # in `TurboWAN.calls`
OVERRIDING_NODES = "Model Sparse Attention, Model Attention Backend"

logger = logging.getLogger("turbodiffusion")


class _OurNetwork(comfy.model_base.BaseModel):
    """A class between ComfyUI's Wan models and its BaseModel: replaces the network class that their constructors name
    by a subclass of ours."""

    network_class: type[TurboWanModel]

    def __init__(self, model_config: Any, *args: Any, unet_model: type, **kwargs: Any):
        known = "turbo" in model_config.unet_config  # not for a variant that only ComfyUI knows
        network = subclass_of(self.network_class, unet_model) if known else unet_model
        super().__init__(model_config, *args, unet_model=network, **kwargs)


class TurboWAN(comfy.model_base.WAN21, _OurNetwork):
    """A Wan model with its `spec`; to every stock node it is a WAN21.

    `calls` counts the calls of its last run (or, without a TurboDiffusion guider, of its runs so far): passes through
    the network, dense self-attention, every operator of `kernels` by name, the blocks' linears that were not int8, and
    sparse self-attention for which another node had set another attention (UNUSED_OVERRIDE). `last_run` is the record
    of that run if a TurboDiffusion guider ran it; `source` is the file that the weights are mapped from, `ahead` its
    reading ahead until a run has ended. `lora_matrices` has those of the LoRAs on clones of the model, while such a
    clone exists."""

    network_class: type[TurboWanModel] = TurboWanModel

    def __init__(self, model_config: Any, spec: WanSpec, source: Path, **kwargs: Any):
        """`kwargs` are those of ComfyUI's class."""
        few_step = spec.turbo and not spec.camera
        if few_step:  # a copy, since ComfyUI's class holds the original
            model_config.sampling_settings = rcm_settings(model_config.sampling_settings, spec)
        super().__init__(model_config, **kwargs)
        if few_step:
            self.model_sampling = RCMSampling(model_config)
        self.spec, self.source = spec, source
        self.dense_steps = 0  # at the start of each run; nodes change it per model clone by an object patch
        self.calls: Counter[str] = Counter()
        self.last_run: RunRecord | None = None
        self.lora_matrices: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
        self.ahead: ReadAhead | None = None
        network = self.diffusion_model
        self.attention_layers = {
            name: layer for name, layer in network.named_modules() if isinstance(layer, TurboSelfAttention)
        }
        # The camera's linears are not counted: they run only with a camera, and once for each chunk of frames.
        linears = [name for name, layer in network.named_modules() if takes_side_paths(layer) and "blocks." in name]
        self._linears = sum(not any(part in name for part in (PROJ_L, ".cam_")) for name in linears)

    def stop_reading(self) -> None:
        """Ends the reading ahead of the model's file."""
        if self.ahead is not None:
            self.ahead.stop()

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
        wait_for_kernels(x.device)
        before = self.calls["int8 linear"]
        with self._attention_of_step(t, transformer_options), counting(self.calls):
            self._check_attention(x.device)
            self.calls["network"] += 1
            dense = sum(layer.sla is None for layer in self.attention_layers.values())
            self.calls["dense attention"] += dense
            if transformer_options.get("optimized_attention_override") is not None:
                self._count_unused_override(len(self.attention_layers) - dense)
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
        layers = self.attention_layers.values()
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
                len(self.attention_layers),
            )
        self.calls[UNUSED_OVERRIDE] += blocks

    def _check_attention(self, device: torch.device) -> None:
        """Raises TurboError if a layer's sparse attention is unsupported on a device. Dense attention is not a
        fallback, because it computes another function: the user chooses it. Checked outside of the compiled network."""
        settings = (layer.sla for layer in self.attention_layers.values())
        for pv in {each.pv for each in settings if each is not None}:
            try:
                check_sparse_attention(device, pv)
            except NoBackendError as error:
                raise TurboError(
                    f"Sparse attention cannot run on {device} ({error.reasons}): set mode to dense in TurboDiffusion "
                    "SLA."
                ) from error

    def process_timestep(self, timestep: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """1000 * sigma [B], for a TurboWan network rounded to bfloat16, as in its training; then as ComfyUI's."""
        timestep = timestep.to(torch.bfloat16).float() if self.spec.turbo else timestep
        return super().process_timestep(timestep, **kwargs)

    def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """As ComfyUI's. Raises TurboError as `check_side_paths`, also for a patcher that is not from our loader."""
        check_side_paths(self.diffusion_model)
        return super().state_dict_for_saving(*args, **kwargs)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """As ComfyUI's. Raises TurboError as `check_conditioning`."""
        check_conditioning(self.spec, kwargs, kwargs["noise"])
        return super().extra_conds(**kwargs)

    def extra_conds_shapes(self, **kwargs: Any) -> dict[str, Any]:
        """As ComfyUI's, with an entry for each condition that adds tokens, for `memory_required`."""
        added = {key: [len(kwargs[key])] for key in ADDED_TOKENS if kwargs.get(key) is not None}
        return super().extra_conds_shapes(**kwargs) | added

    def memory_required(
        self,
        input_shape: Sequence[int],
        cond_shapes: Mapping[str, Any] = {},
        **kwargs: Any,
    ) -> float:
        """Bytes that ComfyUI reserves beside the weights for a step over latents [B, C, T, H, W]: `memory.step_bytes`
        for the networks and conditions that it describes, else ComfyUI's number."""
        device = comfy.model_management.get_torch_device()
        form = step_form(self.diffusion_model, self.spec, device, lora=len(self.lora_matrices) > 0)
        if form is None or len(input_shape) != 5 or any(key in cond_shapes for key in ADDED_TOKENS):
            number: float = super().memory_required(input_shape, cond_shapes=cond_shapes, **kwargs)
            return number
        patches = zip(input_shape[2:], self.diffusion_model.patch_size, strict=True)
        count = math.prod(-(-size // patch) for size, patch in patches)
        return step_bytes(self.spec, count, self.get_dtype_inference(), form, input_shape[0])
