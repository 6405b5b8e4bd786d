"""A GUIDER that runs two experts in one sampler run: the high-noise one down to a boundary, then the low-noise one.

One run keeps the latent, the random numbers and the progress bar in one place. Each expert keeps its own patches (LoRA,
SLA, compile) and hooks; ComfyUI's model management decides what stays on the device, nothing is moved by hand."""

import logging
import math
from collections import Counter

import comfy.hooks
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ..checkpoint.layout import WanSpec
from ..errors import TurboError
from ..record import BEFORE, RunRecord
from ..sampling.schedule import check_boundary, uses_low_expert
from .base_model import (
    CAMERA_KEY,
    IMAGE_KEY,
    TurboWAN,
    check_camera,
    check_experts_match,
    check_image,
    check_latent_shape,
    check_text,
)
from .other_expert import OtherExpert, Run, load
from .prefetch import read_ahead
from .prompt import seconds_before

logger = logging.getLogger("turbodiffusion")


def model_spec(patcher: comfy.model_patcher.ModelPatcher) -> WanSpec:
    """The spec of a model from TurboDiffusionLoader; raises TurboError for any other model."""
    if not isinstance(patcher.model, TurboWAN):
        raise TurboError(
            f"This is a {type(patcher.model).__name__} model from another loader: load it with TurboDiffusionLoader."
        )
    return patcher.model.spec


class ExpertGuider(comfy.samplers.CFGGuider):
    """CFGGuider over one or two experts. A step whose sigma is below `boundary` runs the low expert, if there is one.

    The base class runs whichever expert the first step needs; the other is prepared when a step first asks for it, so an
    expert without a step is never loaded. Raises TurboError for experts that do not belong together."""

    def __init__(
        self,
        high: comfy.model_patcher.ModelPatcher,
        low: comfy.model_patcher.ModelPatcher | None = None,
        boundary: float = 0.9,
    ):
        check_boundary(boundary)
        self.spec = model_spec(high)
        if low is not None:
            check_experts_match(self.spec, model_spec(low))
        super().__init__(high)
        self._high, self._low, self._boundary = high, low, boundary
        self._cfg_high = self._cfg_low = 1.0
        self._other: OtherExpert | None = None
        self._run: Run | None = None
        self._record, self._before = RunRecord(), []  # the latter: what came before a run, in its conditioning

    def set_conds(self, positive, negative=None) -> None:
        """ComfyUI CONDITIONING lists; `negative` is needed only by a cfg other than 1. Raises TurboError for a text of the wrong
        encoder and for an image-to-video model without an image."""
        self._before = []
        for conditioning in (positive,) if negative is None else (positive, negative):
            if not conditioning:
                raise TurboError("The conditioning is empty: connect CLIP Text Encode with the umT5-XXL encoder.")
            for context, options in conditioning:
                check_text(self.spec, context)
                check_image(self.spec, options.get(IMAGE_KEY))
                check_camera(self.spec, options.get(CAMERA_KEY))
                if BEFORE in options:
                    self._before.append(options[BEFORE])
        self.inner_set_conds(
            {"positive": positive} if negative is None else {"positive": positive, "negative": negative}
        )

    def inner_set_conds(self, conds) -> None:
        super().inner_set_conds(conds)
        # For conditioning with hooks the base class exchanges its patcher for one without dynamic VRAM: so must both experts.
        if self.model_patcher is not self._high:
            self._high = self.model_patcher
            if self._low is not None and self._low.is_dynamic():
                self._low = self._low.get_non_dynamic_delegate()

    def set_cfg(self, high: float, low: float) -> None:
        """Raises TurboError for a cfg other than 1 without a negative conditioning (call `set_conds` first)."""
        self._check_negative(high)
        if self._low is not None:
            self._check_negative(low)
        self._cfg_high, self._cfg_low = high, low

    def _check_negative(self, cfg: float) -> None:
        if not math.isclose(cfg, 1.0) and "negative" not in self.original_conds:
            raise TurboError(
                "cfg_high or cfg_low is not 1 (or CFG Override changes it), which needs a negative conditioning: connect one, or set "
                "them to 1 (TurboWan models are made for 1)."
            )

    def get_models(self) -> list[comfy.model_patcher.ModelPatcher]:
        """Both experts: ComfyUI keeps the memory of models that the current prompt uses."""
        return [expert for expert in (self._high, self._low) if expert is not None]

    def sample(self, noise, latent_image, sampler, sigmas, *args, **kwargs):
        if latent_image.is_nested:
            raise TurboError("The latent holds several tensors (video with audio); Wan needs a plain video latent.")
        check_latent_shape(latent_image.shape)
        for cond in (cond for conds in self.original_conds.values() for cond in conds):
            check_image(self.spec, cond.get(IMAGE_KEY), latent_image.shape)
            check_camera(self.spec, cond.get(CAMERA_KEY), latent_image.shape)
        if sigmas.shape[-1] > 0:
            self._activate(self._expert_for(float(sigmas[0])))
        self._record = record = RunRecord(seconds=seconds_before(self._before))
        for expert in self.get_models():
            expert.model.last_run, expert.model.calls = record, Counter()
        record.enter("load")
        try:
            result = super().sample(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            record.enter(None)
            for expert in self.get_models():  # other samplers count on, and not into this run's record
                expert.model.calls = expert.model.calls.copy()
        record.complete = True
        logger.info("Sampled %s.", "; ".join(record.lines()))
        return result

    def outer_sample(self, *args, **kwargs):
        try:
            return super().outer_sample(*args, **kwargs)
        finally:
            run, other, self._run, self._other = self._run, self._other, None, None
            if run is not None and run.ahead is not None:
                run.ahead.stop()
            if other is not None:
                other.release()

    def inner_sample(
        self,
        noise,
        latent_image,
        device,
        sampler,
        sigmas,
        denoise_mask,
        callback,
        disable_pbar,
        seed,
        latent_shapes=None,
        **kwargs,
    ):
        self._run = Run(noise, latent_image, device, sigmas, denoise_mask, seed, latent_shapes)
        return super().inner_sample(
            noise,
            latent_image,
            device,
            sampler,
            sigmas,
            denoise_mask,
            callback,
            disable_pbar,
            seed,
            latent_shapes=latent_shapes,
            **kwargs,
        )

    def outer_predict_noise(self, x, timestep, model_options={}, seed=None, **kwargs):  # noqa: B006 - ComfyUI's signature
        """Enters the step's expert and runs the wrappers that other nodes put around its predictions; they may change `cfg`."""
        sigma = float(timestep.max())  # this waits for the device, so that a phase's seconds are its own
        expert, record, low = self._expert_for(sigma), self._record, self._is_low(sigma)
        name = "sample" if self._low is None else "low" if low else "high"
        self.cfg = self._cfg_low if low else self._cfg_high
        base = expert is self.model_patcher
        if base and self._other is not None and self._other.active:  # a sampler that went back above the boundary
            record.enter("switch")
            self._other.active = False
            load(expert, self._run, self.conds, self.model_options)
        elif not base and (self._other is None or not self._other.active):
            record.enter("switch")
            if self._other is None:
                self._other = OtherExpert(expert, self.original_conds, self._run)
            self._other.activate()
        expert.model.calls = record.begin_pass(name, sigma)
        if name == "high":
            self._read_low_ahead(sigma)
        if base:
            return super().outer_predict_noise(x, timestep, model_options, seed, **kwargs)
        options = self._other.options
        wrappers = get_all_wrappers(WrappersMP.PREDICT_NOISE, options, is_model_options=True)
        return WrapperExecutor.new_class_executor(self.predict_noise, self, wrappers).execute(
            x, timestep, options, seed
        )

    def predict_noise(self, x, timestep, model_options={}, seed=None, **kwargs):  # noqa: B006 - ComfyUI's signature
        self._check_negative(self.cfg)
        if self._other is None or not self._other.active:
            return super().predict_noise(x, timestep, model_options, seed, **kwargs)
        return self._other.predict(x, timestep, self.cfg, model_options, seed, **kwargs)

    def _read_low_ahead(self, sigma: float) -> None:
        """Begins to read the low expert if this run comes to it and the high one has been read: after its first step, or in its
        only one."""
        run, steps = self._run, self._run.sigmas[:-1].tolist()
        high = [step for step in steps if not uses_low_expert(step, self._boundary)]
        if run.looked_ahead or len(high) == len(steps) or (len(high) > 1 and sigma >= high[0]):
            return
        run.looked_ahead = True
        run.ahead = read_ahead(self._high, self._low)
        self._record.read_ahead = None if run.ahead is None else run.ahead.reading

    def _is_low(self, sigma: float) -> bool:
        return self._low is not None and uses_low_expert(sigma, self._boundary)

    def _expert_for(self, sigma: float) -> comfy.model_patcher.ModelPatcher:
        return self._low if self._is_low(sigma) else self._high

    def _activate(self, patcher: comfy.model_patcher.ModelPatcher) -> None:
        self.model_patcher, self.model_options = patcher, patcher.model_options
