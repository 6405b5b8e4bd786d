"""A model that runs every step on several devices."""

import logging
import os
import uuid
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.cli_args
import comfy.model_management
import comfy.model_patcher
import torch
import torch.distributed
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ..errors import TurboError
from ..parallel.group import Backend
from ..parallel.shares import check_heads
from .base_model import TurboWAN
from .camera_model import LingBotWanModel
from .guider import model_spec
from .model import TurboWanModel
from .recipes import check_call, recipe_of
from .token_ranks import TokenRanks

BACKENDS = ("auto", "nccl", "gloo")
_KEY = "turbodiffusion_parallel"
_COMPILE = "torch.compile"  # the key of the wrapper of ComfyUI's TorchCompileModel
_KEPT = 4  # recipes of one model that the other ranks keep, for a LoRA whose strength goes back and forth
_PACK = Path(__file__).resolve().parents[2]

logger = logging.getLogger("turbodiffusion")


def with_parallel(
    patcher: comfy.model_patcher.ModelPatcher, gpus: int, backend: str, address: str
) -> tuple[comfy.model_patcher.ModelPatcher, str]:
    """A clone that runs every step on `gpus` devices (0: all that there are), and a line that says so. With the backend
    gloo a device is a process on the CPU. `address`: that of a Ray cluster, empty for this machine.

    One device gives the model itself. Raises TurboError for a model, a number of devices or a machine that does not
    allow this."""
    spec = model_spec(patcher)
    network = patcher.model.diffusion_model
    if type(network) not in (TurboWanModel, LingBotWanModel):
        raise TurboError(
            f"TurboDiffusion Parallel runs text to video, image to video and LingBot-World; this is {spec.describe()}: "
            "take the node out."
        )
    if backend not in BACKENDS:
        raise TurboError(f"backend is {backend!r}: choose one of {', '.join(BACKENDS)}.")
    chosen = _backend(patcher.load_device, backend)
    visible = _visible_devices() if chosen == "nccl" else []
    size = gpus or (len(visible) if not address else 0)
    if address or size > 1:
        cluster = _cluster()
        cluster.join_cluster(address)
        size = size or max(1, cluster.cluster_gpus() if chosen == "nccl" else 1)
    if size <= 1:
        return patcher, "One device: the model runs as without this node."
    if chosen == "nccl" and not address and size > len(visible):
        raise TurboError(f"gpus is {size}, and ComfyUI sees {len(visible)}: set gpus to at most {len(visible)}, or 0.")
    check_heads(network.num_heads, size)
    place = cluster.Place(
        size=size,
        backend=chosen,
        address=address,
        devices=tuple(visible[1:size]),
        own_device=_own_device(patcher.load_device),
        comfyui=str(Path(comfy.cli_args.__file__).resolve().parents[1]),
        pack=str(_PACK),
        options=vars(comfy.cli_args.args),
    )
    clone = patcher.clone()
    wrapper = _Parallel(patcher.model, place)
    clone.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, _KEY)
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, _KEY, wrapper)
    clone.add_callback_with_key(CallbacksMP.ON_DETACH, _KEY, wrapper.unload)
    return clone, f"{size} {'GPUs' if chosen == 'nccl' else 'processes on the CPU'}, {chosen}"


class _Parallel:
    """A wrapper of a model's network: each call is divided between ranks."""

    def __init__(self, model: TurboWAN, place: Any):
        from ..parallel.workers import Workers  # Ray is optional

        self._model = weakref.ref(model)
        self._workers = Workers(place)
        self._recipes: list[tuple[Any, str]] = []  # what a recipe was made of, and its name
        self._said_uncompiled = False

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As ComfyUI's network, without torch.compile, whose graphs cannot hold collectives between processes. Raises
        TurboError for what goes wrong on any rank."""
        result: torch.Tensor = torch.compiler.disable(self._run)(*args, **kwargs)
        return result

    def _run(
        self,
        executor: Callable[..., torch.Tensor],
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        clip_fea: torch.Tensor | None = None,
        time_dim_concat: torch.Tensor | None = None,
        transformer_options: dict[str, Any] = {},  # noqa: B006 - ComfyUI's signature
        **kwargs: Any,
    ) -> torch.Tensor:
        model = self._model()
        assert model is not None  # it calls this
        check_call(transformer_options, _KEY)
        if not self._said_uncompiled and _COMPILE in transformer_options["wrappers"].get(WrappersMP.APPLY_MODEL, {}):
            self._said_uncompiled = True
            logger.warning(
                "Torch Compile Model has no effect on a model that runs on several GPUs: its graphs cannot hold what "
                "they exchange within every block."
            )
        arguments = kwargs | {
            "x": x,
            "timestep": timestep,
            "context": context,
            "clip_fea": clip_fea,
            "time_dim_concat": time_dim_concat,
        }
        tensors = {key: value for key, value in arguments.items() if isinstance(value, torch.Tensor)}
        others = {key: value for key, value in arguments.items() if key not in tensors}
        layers = model.attention_layers.items()
        attention = {name: None if layer.sla is None else tuple(layer.sla) for name, layer in layers}
        self._workers.connect()
        name = self._load(model, tuple(x.shape))
        with self._workers.step(name, tensors, others, attention) as group:
            ranks = TokenRanks(
                group,
                len(model.diffusion_model.blocks),
                comfy.model_management.throw_exception_if_processing_interrupted,
            )
            options = transformer_options | ranks.options()
            return executor(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)

    def _load(self, model: TurboWAN, shape: tuple[int, ...]) -> str:
        patcher = model.current_patcher
        side_paths = {key: value for key, value in patcher.object_patches.items() if key.endswith(".side_paths")}
        made_of = patcher.patches_uuid, side_paths, set(patcher.object_patches), len(patcher.hook_patches)
        name = next((name for known, name in self._recipes if known == made_of), "")
        if not name:
            name = uuid.uuid4().hex
            self._recipes = [*self._recipes[1 - _KEPT :], (made_of, name)]
        self._workers.load(name, lambda: recipe_of(patcher), shape)
        return name

    def unload(self, *_: Any) -> None:
        """Called when ComfyUI unloads the model: frees the device memory of the other ranks too."""
        self._workers.unload()


def _cluster() -> Any:
    """The module that imports Ray. Raises TurboError without it."""
    try:
        from ..parallel import cluster
    except ImportError as error:
        raise TurboError(
            f"Several GPUs need Ray ({error}): install it with pip install ray, in ComfyUI's Python, or take "
            "TurboDiffusion Parallel out."
        ) from error
    return cluster


def _backend(device: torch.device, backend: str) -> Backend:
    if device.type == "cpu":
        if backend == "nccl":
            raise TurboError("NCCL connects GPUs, and ComfyUI runs on the CPU: set backend to auto or gloo.")
        return "gloo"
    if device.type != "cuda":
        raise TurboError(f"TurboDiffusion Parallel cannot divide a video between {device.type} devices: take it out.")
    if backend == "gloo":
        raise TurboError("The backend gloo is for ComfyUI on the CPU (--cpu): set backend to auto or nccl.")
    if not torch.distributed.is_nccl_available():
        raise TurboError("This PyTorch has no NCCL, which connects GPUs (on Windows none has): take the node out.")
    return "nccl"


def _visible_devices() -> list[str]:
    """The GPUs of this process as values of CUDA_VISIBLE_DEVICES, ComfyUI's own first."""
    count = torch.cuda.device_count()
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = names[:count] if len(names) >= count else [str(i) for i in range(count)]
    own = comfy.model_management.get_torch_device().index or 0
    return [names[own], *names[:own], *names[own + 1 :]]


def _own_device(device: torch.device) -> str:
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else "cpu"
