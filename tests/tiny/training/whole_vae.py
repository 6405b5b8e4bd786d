"""A Wan 2.1 VAE run on whole clips: the same result as ComfyUI's frame-by-frame code, in the form that trains fast.

Works on ComfyUI's `comfy.ldm.wan.vae.WanVAE` and its parameters; only the order of the work differs (a test
compares)."""

import torch
import torch.nn.functional as F
from comfy.ldm.wan.vae import AttentionBlock, CausalConv3d, Resample, ResidualBlock, RMS_norm, WanVAE


def new_vae(dim: int) -> WanVAE:
    """A Wan 2.1 VAE of this base width, as ComfyUI's VAELoader builds one from a file."""
    return WanVAE(
        dim=dim,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        dropout=0.0,
    )


def encode(vae: WanVAE, video: torch.Tensor) -> torch.Tensor:
    """[B, 3, 4n+1, H, W] in -1..1 -> the latent's mean [B, 16, n+1, H/8, W/8]."""
    x = conv(vae.encoder.conv1, video)
    for layer in (*vae.encoder.downsamples, *vae.encoder.middle, *vae.encoder.head):
        x = run(layer, x)
    return conv(vae.conv1, x)[:, :16]


def decode(vae: WanVAE, latent: torch.Tensor) -> torch.Tensor:
    """[B, 16, n+1, h, w] -> video [B, 3, 4n+1, 8h, 8w]."""
    x = conv(vae.decoder.conv1, conv(vae.conv2, latent))
    for layer in (*vae.decoder.middle, *vae.decoder.upsamples, *vae.decoder.head):
        x = run(layer, x)
    return x


def run(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, CausalConv3d):
        return conv(layer, x)
    if isinstance(layer, RMS_norm):
        return norm(layer, x)
    if isinstance(layer, ResidualBlock):
        y = x
        for part in layer.residual:
            y = run(part, y)
        return y + (x if isinstance(layer.shortcut, torch.nn.Identity) else conv(layer.shortcut, x))
    if isinstance(layer, Resample):
        return resample(layer, x)
    if isinstance(layer, AttentionBlock):
        return attention(layer, x)
    return layer(x)


def conv(layer: CausalConv3d, x: torch.Tensor) -> torch.Tensor:
    """A convolution that sees the past only: zeros stand before the first frame."""
    if layer._padding:
        x = F.pad(x, (0, 0, 0, 0, layer._padding, 0))
    return F.conv3d(x, layer.weight, layer.bias, layer.stride, (0, *layer.padding[1:]))


def norm(layer: RMS_norm, x: torch.Tensor) -> torch.Tensor:
    """As matrix products over channels-last pixels: with 8 channels, broadcasting costs more than multiplying."""
    channels = x.shape[1]
    pixels = x.movedim(1, -1)
    average = x.new_full((channels, channels), 1 / channels)
    scaled = pixels * (pixels * pixels @ average + 1e-12).rsqrt()
    return (scaled @ torch.diag(layer.gamma.flatten()).to(x.dtype)).movedim(-1, 1)


def resample(layer: Resample, x: torch.Tensor) -> torch.Tensor:
    """Space, and for the 3d modes time: the first frame stands alone, the others are halved or doubled."""
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        later = conv(layer.time_conv, x[:, :, 1:]).unflatten(1, (2, -1))
        later = torch.stack((later[:, 0], later[:, 1]), 3).flatten(2, 3)
        x = torch.cat((x[:, :, :1], later), 2)
    if layer.mode.startswith("upsample"):
        # Nearest-exact doubling and a 3x3 convolution, as one 3-D convolution over single frames.
        x = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
        layer2d = layer.resample[1]
        x = F.conv3d(x, layer2d.weight[:, :, None], layer2d.bias, padding=(0, 1, 1))
    else:
        layer2d = layer.resample[1]
        x = F.conv3d(F.pad(x, (0, 1, 0, 1)), layer2d.weight[:, :, None], layer2d.bias, (1, 2, 2))
    if layer.mode == "downsample3d" and x.shape[2] > 1:
        later = F.conv3d(x, layer.time_conv.weight, layer.time_conv.bias, (2, 1, 1))
        x = torch.cat((x[:, :, :1], later), 2)
    return x


def attention(layer: AttentionBlock, x: torch.Tensor) -> torch.Tensor:
    """Among the positions of each frame, one head."""
    batch, channels, frames, height, width = x.shape
    y = norm(layer.norm, x.transpose(1, 2).flatten(0, 1))
    y = F.conv2d(y, layer.to_qkv.weight, layer.to_qkv.bias).flatten(2).transpose(1, 2)
    q, k, v = (part.contiguous()[:, None] for part in y.chunk(3, -1))
    y = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).unflatten(2, (height, width))
    y = F.conv2d(y, layer.proj.weight, layer.proj.bias)
    return x + y.unflatten(0, (batch, frames)).transpose(1, 2)
