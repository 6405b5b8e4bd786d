"""Compiles the kernels of a model and of a VAE while files are read and the prompt is encoded, and makes a pass wait
for them."""

import logging
import time
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from comfy.ldm.wan import vae as wan21

from ...kernels import BackgroundCompiler, background_compiler, compile_ahead
from ..kernel_calls import Network, Packed4, decoder_calls, network_calls
from .features import show_on_running_node
from .nf4 import is_nf4
from .quant import is_block_int8, is_channel_int8
from .side_paths import has_side_paths
from .wan_decoder import is_known

logger = logging.getLogger("turbodiffusion")

_LOOK = 0.5  # seconds between two checks of the progress, and of an interrupt by the user


def compile_kernels(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Begins to compile the kernels that a model from TurboDiffusionLoader will launch. Returns at once; where Triton
    does not run, it does nothing."""
    network = network_of(patcher)
    compile_ahead(patcher.load_device, network_calls(network, patcher.load_device))


def compile_decoder_kernels(vae: comfy.sd.VAE) -> None:
    """`compile_kernels` for the decoder of a VAE, if it is one that launches kernels of ours."""
    decoder = getattr(vae.first_stage_model, "decoder", None)
    if is_known(decoder) and vae.vae_dtype in (torch.float16, torch.bfloat16):
        widths = {norm.gamma.numel() for norm in decoder.modules() if type(norm) is wan21.RMS_norm}
        compile_ahead(vae.device, decoder_calls(sorted(widths), vae.vae_dtype))


def network_of(patcher: comfy.model_patcher.ModelPatcher) -> Network:
    """What decides which kernels a model launches, with what its nodes set so far."""
    model = patcher.model
    block = model.diffusion_model.blocks[0]
    layer: Any = block.self_attn.q
    quantized = is_block_int8(layer.weight) or is_channel_int8(layer.weight)
    names = (f"diffusion_model.{name}.sla" for name in model.attention_layers)
    settings = {patcher.get_model_object(name) for name in names} - {None}
    four_bit = None
    if is_nf4(layer.weight):
        params = layer.weight._params
        four_bit = Packed4(params.state.blocksize, params.state.nested_blocksize, params.nested_absmax is not None)
    return Network(
        width=block.dim,
        ffn_width=block.ffn_dim,
        heads=block.num_heads,
        dtype=model.get_dtype_inference(),
        activations=layer.activation if quantized and hasattr(layer, "activation") else "",
        attention=frozenset(settings),
        turbo=model.spec.turbo,
        side_paths=has_side_paths(patcher),
        four_bit=four_bit,
    )


def wait_for_kernels(device: torch.device) -> None:
    """Waits until what `compile_kernels` began for a device is compiled."""
    if device.type == "cuda":
        wait_for(background_compiler(device))


def wait_for(compiler: BackgroundCompiler) -> None:
    """Waits until a compiler has nothing left, and says so on the node that runs. An interrupt by the user ends the
    waiting, not the compiling."""
    if compiler.wait(0):
        return
    began = time.perf_counter()
    while not compiler.wait(_LOOK):
        comfy.model_management.throw_exception_if_processing_interrupted()
        done, total = compiler.progress
        show_on_running_node(
            f"Compiling kernels for this GPU: {done} of {total}. Only the first run has to wait for them."
        )
    seconds = time.perf_counter() - began
    if seconds > _LOOK:
        show_on_running_node(f"Waited {seconds:.0f} s for kernels to be compiled.")
        logger.info("Waited %.1f s for kernels to be compiled, %d of them so far.", seconds, compiler.progress.done)
