"""A sampling run of two experts. ComfyUI's CFGGuider samples with one model: the expert that the first step needs,
called the base expert here. The second expert is prepared as CFGGuider prepares its own model, when a step first needs
it."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import comfy.hooks
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, get_all_wrappers

from ..read_ahead import ReadAhead

logger = logging.getLogger("turbodiffusion")

Conditions = dict[str, list[dict[str, Any]]]  # by "positive" and "negative", as CFGGuider keeps them


class RunInputs(NamedTuple):
    """The arguments of CFGGuider.inner_sample that the second expert's conditioning is prepared with."""

    noise: torch.Tensor
    latent_image: torch.Tensor | None
    sigmas: torch.Tensor
    denoise_mask: torch.Tensor | None
    seed: int | None
    latent_shapes: Any


class SecondExpert:
    """The expert that CFGGuider does not run, with model options, conditioning and hooks separate from the base
    expert's."""

    def __init__(self, patcher: comfy.model_patcher.ModelPatcher, conditions: Conditions, inputs: RunInputs):
        self.patcher = patcher
        self.options = comfy.model_patcher.create_model_options_clone(patcher.model_options)
        self._inputs = inputs
        self._conditions = {name: [condition.copy() for condition in each] for name, each in conditions.items()}
        self._loaded: list[Any] = []
        self._hook_mode = patcher.hook_mode
        self._prepared = False

    def activate(self) -> None:
        """Has ComfyUI load the expert; the first time also prepares its conditioning and hooks."""
        if self._prepared:
            self._load()
        else:
            self._prepare()

    def predict(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        cfg: float,
        options: Mapping[str, Any],
        seed: int | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The denoised x, as CFGGuider.predict_noise returns it; same shape and device. It is computed on the expert's
        own device, which a node may have chosen."""
        device = self.patcher.load_device
        denoised: torch.Tensor = comfy.samplers.sampling_function(
            self.patcher.model,
            x.to(device),
            timestep.to(device),
            self._conditions.get("negative"),
            self._conditions.get("positive"),
            cfg,
            model_options=options,
            seed=seed,
            **kwargs,
        )
        return denoised.to(x.device)

    def _prepare(self) -> None:
        inputs, patcher = self._inputs, self.patcher
        comfy.samplers.preprocess_conds_hooks(self._conditions)
        if comfy.samplers.get_total_hook_groups_in_conds(self._conditions) <= 1:
            patcher.hook_mode = comfy.hooks.EnumHookMode.MinVram
        comfy.sampler_helpers.prepare_model_patcher(patcher, self._conditions, self.options)
        comfy.samplers.filter_registered_hooks_on_conds(self._conditions, self.options)
        if get_all_wrappers(WrappersMP.OUTER_SAMPLE, self.options, is_model_options=True):
            logger.warning(
                "A node that wraps a whole run (EasyCache, LazyCache) has no effect on the second expert of a run: "
                "to use it there, sample "
                "the two experts in two samplers."
            )
        self._load()
        comfy.samplers.cast_to_load_options(self.options, device=patcher.load_device, dtype=patcher.model_dtype())
        patcher.pre_run()
        latent_image = inputs.latent_image
        if latent_image is not None and torch.count_nonzero(latent_image) > 0:
            latent_image = patcher.model.process_latent_in(latent_image)
        self._conditions = comfy.samplers.process_conds(
            patcher.model,
            inputs.noise,
            self._conditions,
            patcher.load_device,
            latent_image,
            inputs.denoise_mask,
            inputs.seed,
            latent_shapes=inputs.latent_shapes,
        )
        self.options.setdefault("transformer_options", {})["sample_sigmas"] = inputs.sigmas
        self._prepared = True

    def _load(self) -> None:
        self._loaded = _load(self.patcher, self._inputs, self._conditions, self.options)

    def release(self) -> None:
        """Undoes the preparation; the weights stay where ComfyUI keeps them."""
        self.patcher.cleanup()
        comfy.sampler_helpers.cleanup_models(self._conditions, self._loaded)
        comfy.samplers.cast_to_load_options(self.options, device=self.patcher.offload_device)
        self.patcher.hook_mode = self._hook_mode
        self.patcher.restore_hook_patches()


class ExpertRun:
    """One sampling run: its inputs, which of its experts is active, and what it holds until it ends.

    `active` is the second expert while it runs, and None while the base expert does. `ahead` is the reading of the low
    expert's file."""

    def __init__(self, inputs: RunInputs):
        self.inputs = inputs
        self.active: SecondExpert | None = None
        self._second: SecondExpert | None = None
        self.read_ahead_decided = False
        self.ahead: ReadAhead | None = None

    def use_base(
        self, patcher: comfy.model_patcher.ModelPatcher, conditions: Conditions, options: dict[str, Any]
    ) -> None:
        """Returns to the base expert, which CFGGuider prepared with these conditions and model options."""
        self.active = None
        _load(patcher, self.inputs, conditions, options)

    def use_second(self, patcher: comfy.model_patcher.ModelPatcher, conditions: Conditions) -> None:
        """Makes the second expert the active one. `conditions` are as they were before CFGGuider prepared them for the
        base expert."""
        if self._second is None:
            self._second = SecondExpert(patcher, conditions, self.inputs)
        self._second.activate()
        self.active = self._second

    def end(self) -> None:
        """Stops the reading and releases the second expert."""
        if self.ahead is not None:
            self.ahead.stop()
        if self._second is not None:
            self._second.release()


def _load(
    patcher: comfy.model_patcher.ModelPatcher, inputs: RunInputs, conditions: Conditions, options: dict[str, Any]
) -> list[Any]:
    """Has ComfyUI load an expert, making room for it, and returns the models that it loads along with it."""
    loaded = comfy.sampler_helpers.prepare_sampling(patcher, inputs.noise.shape, conditions, options)[2]
    patcher.model.current_patcher = patcher  # two patched clones of one file share their model
    return loaded
