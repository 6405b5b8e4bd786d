"""The second expert of a run: what ComfyUI's guider does for its own model, done for one more when a step first needs it."""

import logging

import comfy.hooks
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, get_all_wrappers

from ..read_ahead import ReadAhead

logger = logging.getLogger("turbodiffusion")


class Run:
    """What the base class was given for this run, to prepare the other expert's conditioning with."""

    def __init__(self, noise, latent_image, device, sigmas, denoise_mask, seed, latent_shapes):
        self.noise, self.latent_image, self.device, self.sigmas = noise, latent_image, device, sigmas
        self.denoise_mask, self.seed, self.latent_shapes = denoise_mask, seed, latent_shapes
        self.looked_ahead = False
        self.ahead: ReadAhead | None = None  # the low expert's file, being read


def load(patcher: comfy.model_patcher.ModelPatcher, run: Run, conds: dict, options: dict) -> list:
    """Has ComfyUI load an expert (making room as it sees fit) and returns the models loaded along with it."""
    loaded = comfy.sampler_helpers.prepare_sampling(patcher, run.noise.shape, conds, options)[2]
    patcher.model.current_patcher = patcher  # two patched clones of one file share their model
    return loaded


class OtherExpert:
    """The expert the base class does not run, set up as CFGGuider.sample sets up its own: own options, own hooks."""

    def __init__(self, patcher: comfy.model_patcher.ModelPatcher, original_conds: dict, run: Run):
        self.patcher, self.active = patcher, False
        self._run = run
        self._conds = {name: [cond.copy() for cond in conds] for name, conds in original_conds.items()}
        self.options = comfy.model_patcher.create_model_options_clone(patcher.model_options)
        self._loaded: list = []
        self._hook_mode = patcher.hook_mode
        self._prepared = False

    def activate(self) -> None:
        """Has the expert loaded; the first time also sets up its conditioning and hooks."""
        if self._prepared:
            self._load()
        else:
            self._prepare()

    def predict(
        self, x: torch.Tensor, timestep: torch.Tensor, cfg: float, options: dict, seed: int | None, **kwargs
    ) -> torch.Tensor:
        return comfy.samplers.sampling_function(
            self.patcher.model,
            x,
            timestep,
            self._conds.get("negative"),
            self._conds.get("positive"),
            cfg,
            model_options=options,
            seed=seed,
            **kwargs,
        )

    def _prepare(self) -> None:
        run, patcher = self._run, self.patcher
        comfy.samplers.preprocess_conds_hooks(self._conds)
        if comfy.samplers.get_total_hook_groups_in_conds(self._conds) <= 1:
            patcher.hook_mode = comfy.hooks.EnumHookMode.MinVram
        comfy.sampler_helpers.prepare_model_patcher(patcher, self._conds, self.options)
        comfy.samplers.filter_registered_hooks_on_conds(self._conds, self.options)
        if get_all_wrappers(WrappersMP.OUTER_SAMPLE, self.options, is_model_options=True):
            logger.warning(
                "A node that wraps a whole run (EasyCache, LazyCache) has no effect on the second expert of a run: to use it there, sample "
                "the two experts in two samplers."
            )
        self._load()
        comfy.samplers.cast_to_load_options(self.options, device=run.device, dtype=patcher.model_dtype())
        patcher.pre_run()
        latent_image = run.latent_image
        if latent_image is not None and torch.count_nonzero(latent_image) > 0:
            latent_image = patcher.model.process_latent_in(latent_image)
        self._conds = comfy.samplers.process_conds(
            patcher.model,
            run.noise,
            self._conds,
            run.device,
            latent_image,
            run.denoise_mask,
            run.seed,
            latent_shapes=run.latent_shapes,
        )
        self.options.setdefault("transformer_options", {})["sample_sigmas"] = run.sigmas
        self._prepared = True

    def _load(self) -> None:
        self._loaded = load(self.patcher, self._run, self._conds, self.options)
        self.active = True

    def release(self) -> None:
        """Undoes what preparing did; the weights stay where ComfyUI keeps them."""
        self.patcher.cleanup()
        comfy.sampler_helpers.cleanup_models(self._conds, self._loaded)
        comfy.samplers.cast_to_load_options(self.options, device=self.patcher.offload_device)
        self.patcher.hook_mode = self._hook_mode
        self.patcher.restore_hook_patches()
