"""Text conditioning as ComfyUI's own nodes make it, with the encoder in memory only while it encodes."""

import logging
import os
import time
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import torch
from comfy.text_encoders.wan import UMT5XXlModel
from comfyui_version import __version__ as comfyui_version

from ..checkpoint import read
from ..checkpoint.text_encoder import encoder_sizes
from ..text_cache import TextCache, cache_key
from .conditioning import Conditioning

logger = logging.getLogger("turbodiffusion")

VERSION = 1  # of a cached entry: raise it when the same text gives another one
_EMBEDDING = "embedding:"  # the prefix by which a prompt names a file; the key does not cover its content


def text_conditioning(
    path: Path, name: str, text: str, embedding_directories: list[str], cache: TextCache | None = None
) -> Conditioning:
    """The CONDITIONING of `text`: what CLIPLoader (type wan) and CLIPTextEncode give for the encoder file at `path`,
    bit for bit.

    `name` identifies the file among the encoders, together with its size and time. With a `cache` the file is read only
    for a text that is not in it. Raises CheckpointError for a file that is not a umT5-XXL encoder."""
    if cache is None or _EMBEDDING in text:
        return _encode(path, text, embedding_directories)
    key = _key(path, name, text)
    entry = cache.get(key)
    if entry is not None and "cond" in entry:
        logger.info("The encoded prompt was read from the cache; the text encoder is not needed.")
        return _conditioning(entry)
    conditioning = _encode(path, text, embedding_directories)
    tensors = _tensors(conditioning)
    if tensors is not None:
        cache.put(key, tensors)
    return conditioning


def _key(path: Path, name: str, text: str) -> str:
    status = os.stat(path)
    return cache_key(
        version=VERSION,
        host=comfyui_version,  # its code computes the embedding
        device=_device().type,
        encoder=name.replace("\\", "/"),
        size=status.st_size,
        modified=status.st_mtime_ns,
        text=text,
    )


def _encode(path: Path, text: str, embedding_directories: list[str]) -> Conditioning:
    began = time.perf_counter()
    clip = _load(path, embedding_directories)
    conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    # ComfyUI's list of loaded models holds them by weak references: deleting this reference frees the weights on every
    # device.
    del clip
    comfy.model_management.soft_empty_cache()
    seconds = time.perf_counter() - began
    logger.info("Encoded the prompt with %s on %s in %.1f s and freed the encoder.", path.name, _device(), seconds)
    return conditioning


def _device() -> torch.device:
    """The device that encodes: ComfyUI's choice, except that --lowvram and --novram do not make it the CPU. ComfyUI
    chooses the CPU then to save VRAM, but its offloading can stream the weights through whatever VRAM there is."""
    device: torch.device = comfy.model_management.text_encoder_device()
    small = comfy.model_management.vram_state.name in ("LOW_VRAM", "NO_VRAM")
    if small and comfy.model_management.should_use_fp16(prioritize_performance=False):
        device = comfy.model_management.get_torch_device()
    return device


def _load(path: Path, embedding_directories: list[str]) -> comfy.sd.CLIP:
    sizes = encoder_sizes(path.name, read.read(path)[0])
    return comfy.sd.load_clip(
        [str(path)],
        embedding_directory=embedding_directories,
        clip_type=comfy.sd.CLIPType.WAN,
        model_options={
            "umt5xxl_class": _MappedEncoder,
            "umt5xxl_model_config": sizes,
            "initial_device": torch.device("cpu"),
            "load_device": _device(),
        },
    )


class _MappedEncoder(UMT5XXlModel):
    """ComfyUI's encoder, which also without dynamic VRAM uses its weights from the file's mapping, where ComfyUI would
    copy them."""

    def load_sd(self, sd: dict[str, torch.Tensor]) -> Any:
        if not getattr(self, "can_assign_sd", False):  # set by CLIP.load_sd
            for name, declared in self.transformer.named_parameters():
                if name in sd:
                    sd[name] = sd[name].to(declared.dtype)
            self.can_assign_sd = True
        return super().load_sd(sd)


def _tensors(conditioning: Conditioning) -> dict[str, torch.Tensor] | None:
    """The tensors of a conditioning that an entry stores, or None if it holds more than umT5's embedding."""
    (embedding, options), *more = conditioning
    if more or any(value is not None for value in options.values()):
        return None
    return {"cond": embedding}


def _conditioning(entry: dict[str, torch.Tensor]) -> Conditioning:
    return [[entry["cond"].to(comfy.model_management.intermediate_device()), {"pooled_output": None}]]
