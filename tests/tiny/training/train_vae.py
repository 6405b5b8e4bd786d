"""The toy world's VAE: Wan 2.1's architecture, 8 channels wide, trained on windows of clips and then on whole clips."""

from pathlib import Path

import comfy.latent_formats
import torch

from .. import world
from . import whole_vae
from .loop import Stage, logger, train

DIM = 8
STAGE = Stage("vae", steps=1090, average=0.995)
WHOLE_FROM = 1020  # the last steps see whole clips
RATE = 1.5e-3
WINDOW, WINDOW_FRAMES, BATCH = 32, 13, 12  # many small windows: colors are learned from many clips at once
OTHER_COLORS = 0.3  # the part of the clips in colors of no name, so that a LoRA can teach a new one
NOISE = 0.3  # the most noise on a latent, in its own standard deviations: a DiT's latents are not exact


def run(folder: Path) -> dict[str, torch.Tensor]:
    """Trains or resumes; returns the state dict in the published layout, its latents scaled to Wan 2.1's statistics."""
    torch.manual_seed(0)
    vae = whole_vae.new_vae(DIM)
    initialise(vae)
    parameters = dict(vae.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=RATE, betas=(0.9, 0.98), weight_decay=1e-4)
    averaged = train(STAGE, folder, parameters, [optimizer], lambda step: loss(vae, step))
    vae.load_state_dict(averaged)
    match_statistics(vae)
    return vae.state_dict()


CARRIED = 7  # channels that start out carrying red, green, blue, their negatives (for SiLU), and a one


def initialise(vae: torch.nn.Module) -> None:
    """Random weights, in which the first channels already carry the mean colors of each 8x8x4 block through encoder and
    decoder: left to random weights alone, a network this narrow takes thousands of steps to find color."""
    for name, p in vae.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.ones_(p)
        elif p.ndim == 1:
            torch.nn.init.zeros_(p)
        else:
            branch = name.endswith("residual.6.weight") or name.endswith("proj.weight")
            torch.nn.init.normal_(p, std=(0.2 if branch else 1.0) / p[0].numel() ** 0.5)
    for name, layer in vae.named_modules():
        if name.endswith("shortcut") and not isinstance(layer, torch.nn.Identity):
            carry(layer.weight.data, [1])
        elif name.endswith("resample.1"):
            if name.startswith("encoder"):
                carry(layer.weight.data[:, :, :2, :2], [0.25])
                layer.weight.data[:CARRIED, :, 2] = layer.weight.data[:CARRIED, :, :, 2] = 0
            else:
                clear(layer.weight.data)
                carry(layer.weight.data[:, :, 1:2, 1:2], [1])
        elif name.endswith("time_conv"):
            for half in layer.weight.data.split(layer.weight.shape[1]):
                carry(half, [0, 0.5, 0.5] if name.startswith("encoder") else [0, 0, 1])
    signs = torch.cat((torch.eye(3), -torch.eye(3)))
    for conv in (vae.encoder.conv1, vae.decoder.conv1):
        clear(conv.weight.data)
        conv.weight.data[:6, :3, 2, 1, 1] = signs
        conv.bias.data[6] = 1
    for conv in (vae.encoder.head[2], vae.decoder.head[2]):
        conv.weight.data[:3] = 0
        conv.weight.data[:3, :6, 2, 1, 1] = signs.T
    for conv in (vae.conv1, vae.conv2):
        torch.nn.init.dirac_(conv.weight)
    for p in vae.parameters():
        if p.ndim == 5:
            p.data = p.data.contiguous(memory_format=torch.channels_last_3d)


def clear(weight: torch.Tensor) -> None:
    weight[:CARRIED] = 0


def carry(weight: torch.Tensor, taps: list[float]) -> None:
    """Makes the carried channels of a convolution [out, in, ...] pass through, in time by `taps` or in space each
    tap."""
    clear(weight)
    for i in range(CARRIED):
        part = weight[i, i]
        part += torch.tensor(taps).view(-1, *[1] * (part.ndim - 1))


def loss(vae: torch.nn.Module, step: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(step)
    clips = [window(random) for _ in range(BATCH)] if step < WHOLE_FROM else [whole(random)]
    video = (torch.stack(clips) * 2 - 1).permute(0, 4, 1, 2, 3).contiguous(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16):
        latent = whole_vae.encode(vae, video).float()
        spread = latent.std((0, 2, 3, 4), keepdim=True)
        amount = NOISE * torch.rand(len(clips), 1, 1, 1, 1, generator=random)
        noisy = latent + amount * spread.detach() * torch.randn(latent.shape, generator=random)
        again = whole_vae.decode(vae, noisy).float()
    difference = again - video
    sharp = sum(difference.diff(dim=d).abs().mean() for d in (2, 3, 4))
    tidy = latent.mean((0, 2, 3, 4)).square().mean() + (spread - 1).square().mean()
    value = difference.abs().mean() + difference.square().mean() + sharp + 0.01 * tidy
    if step % 50 == 0:
        psnr = -10 * (difference.detach() / 2).square().mean().log10().item()
        logger.info("vae %d: PSNR %.2f dB, latent spread %.2f to %.2f", step, psnr, spread.min(), spread.max())
    return value


def window(random: torch.Generator) -> torch.Tensor:
    """Part of a clip, in space and time, that shows some of a shape."""
    what, colors = draw(random)
    first = int(torch.randint(world.FRAMES - WINDOW_FRAMES + 1, (1,), generator=random))
    shape = what.shapes[int(torch.randint(len(what.shapes), (1,), generator=random))]
    traveled = ((first + WINDOW_FRAMES / 2) / (world.FRAMES - 1) - 0.5) * world.SPEEDS[what.speed]
    heading = world.DIRECTIONS[what.direction]
    offset = (torch.rand(2, generator=random) * (WINDOW + 16) - 8).tolist()
    origin = tuple(shape.center[i] + traveled * heading[i] - offset[i] for i in (0, 1))
    return world.render(what, WINDOW, WINDOW_FRAMES, origin, first, colors)


def whole(random: torch.Generator) -> torch.Tensor:
    what, colors = draw(random)
    return world.render(what, colors=colors)


def draw(random: torch.Generator) -> tuple[world.Scene, dict]:
    what = world.scene(int(torch.randint(1 << 30, (1,), generator=random)))
    colors = {}
    if torch.rand(1, generator=random) < OTHER_COLORS:
        colors = {shape.color: tuple(torch.rand(3, generator=random).tolist()) for shape in what.shapes}
    return what, colors


@torch.no_grad()
def match_statistics(vae: torch.nn.Module, clips: int = 16) -> None:
    """Scales and shifts every latent channel to the mean and spread that Wan 2.1's latent format takes for granted, in
    the encoder's last and the decoder's first 1x1 convolution, so that the DiT's latents have unit variance."""
    latents = []
    for seed in range(clips):
        video = world.render(world.scene(seed)).permute(3, 0, 1, 2)[None] * 2 - 1
        with torch.autocast("cpu", torch.bfloat16):
            latent = whole_vae.encode(vae, video.contiguous(memory_format=torch.channels_last_3d))
        latents.append(latent.float())
    latents = torch.cat(latents)
    spread, mean = torch.std_mean(latents, (0, 2, 3, 4))
    wan = comfy.latent_formats.Wan21()
    wanted_spread, wanted_mean = wan.latents_std.flatten(), wan.latents_mean.flatten()
    scale = wanted_spread / spread
    shift = wanted_mean - mean * scale
    # latent' = scale * latent + shift
    vae.conv1.weight[:16] *= scale[:, None, None, None, None]
    vae.conv1.bias[:16] = vae.conv1.bias[:16] * scale + shift
    vae.conv2.bias -= (vae.conv2.weight[:, :, 0, 0, 0] / scale) @ shift
    vae.conv2.weight /= scale[None, :, None, None, None]
