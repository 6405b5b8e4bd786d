"""A GUIDER that runs two experts in one sampler run: the high expert down to a boundary, then the low expert.

One run keeps the latent, the random numbers and the progress bar in one place. Each expert keeps its own patches (LoRA,
SLA, compile) and hooks; ComfyUI's model management decides what stays on the device, nothing is moved by hand."""

import logging
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import comfy.model_patcher
import comfy.samplers
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ..checkpoint.layout import WanSpec
from ..errors import TurboError, check_finite
from ..record import BEFORE, Before, RunRecord
from ..sampling.schedule import check_boundary, uses_low_expert
from .base_model import TurboWAN
from .conditioning import TEXT_KEY, Conditioning, check_conditioning, check_latent
from .prefetch import read_ahead
from .prompt import seconds_before
from .second_expert import ExpertRun, RunInputs

logger = logging.getLogger("turbodiffusion")


def model_spec(patcher: comfy.model_patcher.ModelPatcher) -> WanSpec:
    """The spec of a model from TurboDiffusionLoader; raises TurboError for any other model."""
    if not isinstance(patcher.model, TurboWAN):
        raise TurboError(
            f"This is a {type(patcher.model).__name__} model from another loader: load it with TurboDiffusionLoader."
        )
    return patcher.model.spec


def _check_experts_match(high: WanSpec, low: WanSpec) -> None:
    """Raises TurboError unless two experts can share one run: same task, same size, same text encoder."""
    for what, a, b in (
        ("task", high.task, low.task),
        ("input channels", high.in_channels, low.in_channels),
        ("width", high.dim, low.dim),
        ("number of layers", high.layers, low.layers),
        ("text width", high.text_width, low.text_width),
        ("camera control", high.camera, low.camera),
    ):
        if a != b:
            raise TurboError(
                f"The two experts do not belong together, their {what} differs (high: {high.describe()}, low: "
                f"{low.describe()}): load the -high and the -low file of one model."
            )


class ExpertGuider(comfy.samplers.CFGGuider):
    """CFGGuider over one or two experts. A step whose sigma is below `boundary` runs the low expert, if there is one.

    The base class runs the expert that the first step needs; the second one is prepared when a step first needs it, so
    that an expert without a step is never loaded. Raises TurboError for experts that do not belong together."""

    def __init__(
        self,
        high: comfy.model_patcher.ModelPatcher,
        low: comfy.model_patcher.ModelPatcher | None = None,
        boundary: float = 0.9,
    ):
        check_boundary(boundary)
        self.spec = model_spec(high)
        if low is not None:
            _check_experts_match(self.spec, model_spec(low))
        super().__init__(high)
        self._high, self._low, self._boundary = high, low, boundary
        self._cfg_high = self._cfg_low = 1.0
        self._run: ExpertRun | None = None
        self._record = RunRecord()
        self._before: list[Before] = []  # the phases before a run that its conditioning names

    def set_conds(self, positive: Conditioning, negative: Conditioning | None = None) -> None:
        """`negative` is needed only by a cfg other than 1. Raises TurboError as `check_conditioning`."""
        self._before = []
        given = {"positive": positive} if negative is None else {"positive": positive, "negative": negative}
        for conditioning in given.values():
            if not conditioning:
                raise TurboError("The conditioning is empty: connect CLIP Text Encode with the umT5-XXL encoder.")
            for context, options in conditioning:
                check_conditioning(self.spec, {**options, TEXT_KEY: context})
                if BEFORE in options:
                    self._before.append(options[BEFORE])
        self.inner_set_conds(given)

    def inner_set_conds(self, conds: Mapping[str, Conditioning]) -> None:
        """As the base class, for both experts."""
        super().inner_set_conds(conds)
        # For conditioning with hooks the base class replaces its patcher by one without dynamic VRAM. Both experts must
        # be replaced.
        if self.model_patcher is not self._high:
            self._high = self.model_patcher
            if self._low is not None and self._low.is_dynamic():
                self._low = self._low.get_non_dynamic_delegate()

    def set_cfg(self, high: float, low: float) -> None:
        """Raises TurboError for a cfg that is NaN or infinite, and for one other than 1 without a negative conditioning
        (call `set_conds` first)."""
        check_finite("cfg_high", high, "1")
        check_finite("cfg_low", low, "1")
        self._check_negative(high)
        if self._low is not None:
            self._check_negative(low)
        self._cfg_high, self._cfg_low = high, low

    def _check_negative(self, cfg: float) -> None:
        if not math.isclose(cfg, 1.0) and "negative" not in self.original_conds:
            raise TurboError(
                "cfg_high or cfg_low is not 1 (or CFG Override changes it), which needs a negative conditioning: "
                "connect one, or set "
                "them to 1 (TurboWan models are made for 1)."
            )

    def get_models(self) -> list[comfy.model_patcher.ModelPatcher]:
        """Both experts: ComfyUI keeps the memory of models that the current prompt uses."""
        return [expert for expert in (self._high, self._low) if expert is not None]

    def sample(
        self,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        sampler: comfy.samplers.KSAMPLER,
        sigmas: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As the base class; records the run in the `last_run` of both experts' models. Raises TurboError as
        `check_conditioning`."""
        check_latent(latent_image)
        for condition in (condition for conditions in self.original_conds.values() for condition in conditions):
            check_conditioning(self.spec, condition, latent_image)
        if sigmas.shape[-1] > 0:
            self._activate(self._expert_for(float(sigmas[0])))
        self._record = record = RunRecord(seconds=seconds_before(self._before))
        for expert in self.get_models():
            expert.model.last_run, expert.model.calls = record, Counter()
            if expert.model.ahead is not None:
                record.read_ahead.append(expert.model.ahead.reading)
        record.enter("load")
        try:
            result = super().sample(noise, latent_image, sampler, sigmas, *args, **kwargs)
        finally:
            record.enter(None)
            for expert in self.get_models():  # a copy, so that other samplers do not count into this run's record
                expert.model.calls = expert.model.calls.copy()
                expert.model.stop_reading()
                expert.model.ahead = None
        record.complete = True
        logger.info("Sampled %s.", "; ".join(record.lines()))
        return result

    def outer_sample(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the base class, and ends the run whether it succeeds or not."""
        try:
            return super().outer_sample(*args, **kwargs)
        finally:
            run, self._run = self._run, None
            if run is not None:
                run.end()

    def inner_sample(
        self,
        noise: torch.Tensor,
        latent_image: torch.Tensor | None,
        device: torch.device,
        sampler: comfy.samplers.KSAMPLER,
        sigmas: torch.Tensor,
        denoise_mask: torch.Tensor | None,
        callback: Any,
        disable_pbar: bool,
        seed: int | None,
        latent_shapes: Any = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As the base class, whose arguments the second expert needs too."""
        self._run = ExpertRun(RunInputs(noise, latent_image, sigmas, denoise_mask, seed, latent_shapes))
        arguments = noise, latent_image, device, sampler, sigmas, denoise_mask, callback, disable_pbar, seed
        return super().inner_sample(*arguments, latent_shapes=latent_shapes, **kwargs)

    def outer_predict_noise(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict[str, Any] = {},  # noqa: B006 - ComfyUI's signature
        seed: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Switches to the step's expert and runs the wrappers that other nodes put around its predictions; they may
        change `cfg`."""
        sigma = float(timestep.max())  # this waits for the device, so that a phase's seconds are its own
        run, record, low, expert = self._current_run, self._record, self._is_low(sigma), self._expert_for(sigma)
        name = "sample" if self._low is None else "low" if low else "high"
        self.cfg = self._cfg_low if low else self._cfg_high
        if expert is not self.model_patcher and run.active is None:
            record.enter("switch")
            run.use_second(expert, self.original_conds)
        elif expert is self.model_patcher and run.active is not None:  # the sampler went back across the boundary
            record.enter("switch")
            run.use_base(expert, self.conds, self.model_options)
        expert.model.calls = record.begin_pass(name, sigma)
        if name == "high":
            self._read_low_ahead(run, sigma)
        if run.active is None:
            return super().outer_predict_noise(x, timestep, model_options, seed, **kwargs)
        options = run.active.options
        wrappers = get_all_wrappers(WrappersMP.PREDICT_NOISE, options, is_model_options=True)
        return WrapperExecutor.new_class_executor(self.predict_noise, self, wrappers).execute(
            x, timestep, options, seed
        )

    def predict_noise(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict[str, Any] = {},  # noqa: B006 - ComfyUI's signature
        seed: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As the base class, by the active expert."""
        self._check_negative(self.cfg)
        second = None if self._run is None else self._run.active
        if second is None:
            return super().predict_noise(x, timestep, model_options, seed, **kwargs)
        return second.predict(x, timestep, self.cfg, model_options, seed, **kwargs)

    @property
    def _current_run(self) -> ExpertRun:
        if self._run is None:
            raise RuntimeError("ExpertGuider predicts only while it samples.")
        return self._run

    def _read_low_ahead(self, run: ExpertRun, sigma: float) -> None:
        """Begins to read the low expert's file if this run comes to it and the high expert has been read: after its
        first step, or in its only one."""
        steps = run.inputs.sigmas[:-1].tolist()
        high = [step for step in steps if not uses_low_expert(step, self._boundary)]
        if run.read_ahead_decided or len(high) == len(steps) or (len(high) > 1 and sigma >= high[0]):
            return
        run.read_ahead_decided = True
        for expert in self.get_models():  # one file at a time
            expert.model.stop_reading()
        run.ahead = read_ahead(self._high, self._low)
        if run.ahead is not None:
            self._record.read_ahead.append(run.ahead.reading)

    def _is_low(self, sigma: float) -> bool:
        return self._low is not None and uses_low_expert(sigma, self._boundary)

    def _expert_for(self, sigma: float) -> comfy.model_patcher.ModelPatcher:
        return self._low if self._is_low(sigma) else self._high

    def _activate(self, patcher: comfy.model_patcher.ModelPatcher) -> None:
        self.model_patcher, self.model_options = patcher, patcher.model_options
