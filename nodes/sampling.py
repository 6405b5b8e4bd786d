"""Few-step sampling: the schedule, the sampler, the guider for two experts, and a node that combines them."""

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..turbo_core.errors import TurboError
from ..turbo_core.host.features import show_on_node
from ..turbo_core.host.guider import ExpertGuider
from ..turbo_core.host.run import needs_low_expert, run
from ..turbo_core.host.sampler import AUTO, NOISE_DEVICES, NoiseDevice, SamplerMode, make_sampler
from ..turbo_core.record import RUN
from ..turbo_core.sampling import rcm, schedule
from .loader import CATEGORY

_NOT_LINKED = object()


def _steps() -> io.Int.Input:
    return io.Int.Input(
        "steps",
        default=4,
        min=1,
        max=schedule.MAX_STEPS,
        tooltip="The models were trained for 1 to 4; more steps are an extension and may add a little detail.",
    )


def _boundary() -> io.Float.Input:
    return io.Float.Input(
        "boundary",
        default=0.9,
        min=0.001,
        max=1.0,
        step=0.001,
        advanced=True,
        tooltip="The sigma (noise level) below which the low expert runs. 0.9 for TurboWan I2V A14B: of 4 steps, 2 "
        "are high and 2 low.",
    )


def _mode() -> io.Combo.Input:
    return io.Combo.Input(
        "mode",
        options=[AUTO, *rcm.MODES],
        default=AUTO,
        tooltip="auto: sde for text to video, ode for image to video, as in TurboDiffusion's examples. sde: adds new "
        "noise after every step; robust. ode: adds none; sharper, but less robust.",
    )


def _noise_device() -> io.Combo.Input:
    return io.Combo.Input(
        "noise_device",
        options=list(NOISE_DEVICES),
        default="cpu",
        advanced=True,
        tooltip="Where random numbers are drawn. cpu: the same noise on every machine. gpu: on the device, as "
        "TurboDiffusion's command line does.",
    )


def _expert_inputs(advanced: bool) -> list[io.Input]:
    return [
        io.Conditioning.Input("negative", optional=True, tooltip="Used only with a cfg other than 1."),
        io.Float.Input(
            "cfg_high",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.1,
            optional=True,
            advanced=advanced,
            tooltip="Guidance scale of the high expert. TurboWan models are trained for 1; other values double the "
            "time.",
        ),
        io.Float.Input(
            "cfg_low",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.1,
            optional=True,
            advanced=advanced,
            tooltip="Guidance scale of the low expert.",
        ),
    ]


def _validate_schedule(steps: int | None, sigma_max: float | None) -> bool | str:
    """True, or what is wrong, as ComfyUI's `validate_inputs` returns it. A linked input is None here: the run checks
    its value."""
    try:
        schedule.check_schedule(1 if steps is None else steps, 80.0 if sigma_max is None else sigma_max)
    except TurboError as error:
        return str(error)
    return True


class TurboDiffusionSigmas(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionSigmas",
            display_name="TurboDiffusion Sigmas",
            category=CATEGORY,
            description="The sigmas (noise levels) of a few-step run, complete and split at the expert boundary. To "
            "run the two parts in two samplers, connect DisableNoise to the second one.",
            search_aliases=["rCM scheduler", "few step", "scheduler"],
            inputs=[
                _steps(),
                io.Float.Input(
                    "sigma_max",
                    default=80.0,
                    min=0.0,
                    max=1e6,
                    step=0.1,
                    tooltip="Where the schedule starts: 80 for T2V, 200 for I2V. It must exceed 14.2 unless steps is "
                    "1.",
                ),
                _boundary(),
            ],
            outputs=[
                io.Sigmas.Output(display_name="sigmas", tooltip="All sigmas."),
                io.Sigmas.Output(display_name="high", tooltip="The sigmas of the high expert."),
                io.Sigmas.Output(display_name="low", tooltip="The sigmas of the low expert; empty if it has no step."),
            ],
        )

    @classmethod
    def validate_inputs(cls, steps: int | None, sigma_max: float | None) -> bool | str:
        return _validate_schedule(steps, sigma_max)

    @classmethod
    def execute(cls, steps: int, sigma_max: float, boundary: float) -> io.NodeOutput:
        schedule.check_boundary(boundary)
        sigmas = torch.tensor(schedule.sigmas(steps, sigma_max), dtype=torch.float32)
        return io.NodeOutput(sigmas, *schedule.split(sigmas, boundary))


class TurboDiffusionSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionSampler",
            display_name="TurboDiffusion Sampler",
            category=CATEGORY,
            description="The few-step sampler of TurboWan models, for SamplerCustomAdvanced.",
            search_aliases=["rCM sampler", "lcm", "few step"],
            inputs=[_mode(), _noise_device()],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, mode: SamplerMode, noise_device: NoiseDevice) -> io.NodeOutput:
        return io.NodeOutput(make_sampler(mode, noise_device))


class TurboDiffusionGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionGuider",
            display_name="TurboDiffusion Guider",
            category=CATEGORY,
            description="Runs one or two experts in a single sampler run, for SamplerCustomAdvanced. The low expert "
            "runs the steps whose sigma is below the boundary.",
            search_aliases=["dual expert", "high noise low noise", "two experts", "Wan 2.2 guider"],
            inputs=[
                io.Model.Input("high", tooltip="The model, or the high-noise expert of a pair."),
                io.Conditioning.Input("positive", tooltip="The prompt; for image to video, after WanImageToVideo."),
                _boundary(),
                io.Model.Input(
                    "low",
                    optional=True,
                    tooltip="The low-noise expert of a pair. It is loaded at the first step below the boundary.",
                ),
                *_expert_inputs(advanced=False),
            ],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        high: ModelPatcher,
        positive: io.Conditioning.Type,
        boundary: float,
        low: ModelPatcher | None = None,
        negative: io.Conditioning.Type | None = None,
        cfg_high: float = 1.0,
        cfg_low: float = 1.0,
    ) -> io.NodeOutput:
        guider = ExpertGuider(high, low, boundary)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg_high, cfg_low)
        return io.NodeOutput(guider)


class TurboDiffusionSample(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionSample",
            display_name="TurboDiffusion Sample",
            category=CATEGORY,
            essentials_category="Video Generation",
            description="Samples a video latent in 1 to 4 steps: schedule, sampler and expert switch in one node.",
            search_aliases=["TurboWan sampler", "KSampler", "few step", "rCM"],
            inputs=[
                io.Model.Input("high", tooltip="The model, or the high-noise expert of a pair."),
                io.Conditioning.Input("positive", tooltip="The prompt; for image to video, after WanImageToVideo."),
                io.Latent.Input(
                    "latent",
                    tooltip="An empty video latent, or that of WanImageToVideo. It sets the size and the length of "
                    "the video.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The seed of the random numbers: the same seed gives the same video.",
                ),
                _steps(),
                io.Float.Input(
                    "sigma_max",
                    default=0.0,
                    min=0.0,
                    max=1e6,
                    step=0.1,
                    advanced=True,
                    tooltip="Where the schedule starts. 0: the value of the model, 80 for T2V and 200 for I2V.",
                ),
                _boundary(),
                _mode(),
                _noise_device(),
                io.Model.Input(
                    "low",
                    optional=True,
                    lazy=True,
                    tooltip="The low-noise expert of a pair. A run that does not need it (1 or 2 steps) does not load "
                    "it.",
                ),
                *_expert_inputs(advanced=True),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Latent.Output(tooltip="The sampled latent, for a TurboDiffusion VAE Decode node.")],
        )

    @classmethod
    def validate_inputs(cls, steps: int | None, sigma_max: float | None) -> bool | str:
        return _validate_schedule(steps, sigma_max or 80.0)

    @classmethod
    def check_lazy_status(
        cls, high: ModelPatcher, steps: int, sigma_max: float, boundary: float, low: object = _NOT_LINKED, **_: Any
    ) -> list[str]:
        """The lazy inputs to evaluate. ComfyUI passes None for `low` when it is linked and not evaluated yet."""
        return ["low"] if low is None and needs_low_expert(high, steps, sigma_max, boundary) else []

    @classmethod
    def execute(
        cls,
        high: ModelPatcher,
        positive: io.Conditioning.Type,
        latent: io.Latent.Type,
        seed: int,
        steps: int,
        sigma_max: float,
        boundary: float,
        mode: SamplerMode,
        noise_device: NoiseDevice,
        low: ModelPatcher | None = None,
        negative: io.Conditioning.Type | None = None,
        cfg_high: float = 1.0,
        cfg_low: float = 1.0,
    ) -> io.NodeOutput:
        sampled = run(
            high,
            positive,
            latent,
            seed,
            steps,
            sigma_max,
            boundary,
            mode,
            noise_device,
            low,
            negative,
            cfg_high,
            cfg_low,
        )
        show_on_node(cls, sampled[RUN].summary)
        return io.NodeOutput(sampled)
