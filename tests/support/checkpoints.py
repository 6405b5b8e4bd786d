"""Tiny random checkpoints in upstream's layout, and the golden outputs computed with them.

A weight is drawn from its key and the seed by numpy's RandomState, whose stream is frozen, so that golden files
hold no weights.
"""

import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
HEAD_DIM = 128
TILE = 128
TEXT_DIM = 4096
NEAR_ONE = ("norm_q.weight", "norm_k.weight", "norm3.weight")

T2V_SLA = "tiny_t2v_sla.pth"
I2V_HIGH = "tiny_i2v_high.pth"
I2V_LOW = "tiny_i2v_low.pth"
I2V_21 = "tiny_i2v_2.1.safetensors"
VACE = "tiny_vace.safetensors"
VAE = "tiny_vae.safetensors"
DRAFT_VAE = "lighttaew2_1.safetensors"  # of vaes.write_draft; ComfyUI knows such a file by its name


# Trained models of a toy world (tests/tiny), by the folder under models/ they belong in.
TOY_WEIGHTS = Path(__file__).resolve().parents[1] / "tiny" / "weights"
TOY_T2V = "toy-world-T2V.pth"
TOY_I2V_HIGH, TOY_I2V_LOW = "toy-world-I2V-high.pth", "toy-world-I2V-low.pth"
TOY_VAE = "toy-world-vae.safetensors"
TOY_LORA = "toy-world-red-to-turquoise.safetensors"
# LoRAs of which the tests of a turbo model by delta make its teacher, on the T2V model, and a fine-tune, on the teacher
TOY_TEACHER, TOY_FINE_TUNE = "toy-world-T2V-teacher.safetensors", "toy-world-T2V-fine-tune.safetensors"
TOY_FILES = {"diffusion_models": (TOY_T2V, TOY_I2V_HIGH, TOY_I2V_LOW), "vae": (TOY_VAE,), "loras": (TOY_LORA,)}


def draw(seed: int, key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal float32 values that depend on the seed and the key alone."""
    random = np.random.RandomState(zlib.crc32(f"{seed}:{key}".encode()) & 0x7FFFFFFF)
    return torch.from_numpy(random.standard_normal(shape).astype(np.float32))


def weight(seed: int, key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The bfloat16 value of a checkpoint's key."""
    return as_weight(key, draw(seed, key, shape))


def as_weight(key: str, a: torch.Tensor) -> torch.Tensor:
    """Standard normal values scaled as a network's tensor of that name needs them, in bfloat16."""
    shape = a.shape
    if key.endswith(NEAR_ONE):
        a = 1 + 0.1 * a
    elif "modulation" in key:
        a = 0.3 * a
    elif len(shape) == 1:
        a = 0.05 * a
    else:
        a = a / shape[-1] ** 0.5
    return a.to(torch.bfloat16)


def shapes(dim: int, ffn_dim: int, layers: int, in_channels: int, sla: bool) -> dict[str, tuple[int, ...]]:
    """Every upstream key of the network with its shape."""
    linears = {
        "patch_embedding": (dim, in_channels * 4),
        "text_embedding.0": (dim, TEXT_DIM),
        "text_embedding.2": (dim, dim),
        "time_embedding.0": (dim, 256),
        "time_embedding.2": (dim, dim),
        "time_projection.1": (6 * dim, dim),
        "head.head": (64, dim),
    }
    single = {"head.modulation": (1, 2, dim)}
    for block in (f"blocks.{i}" for i in range(layers)):
        single[f"{block}.modulation"] = (1, 6, dim)
        for attention in (f"{block}.self_attn", f"{block}.cross_attn"):
            linears.update({f"{attention}.{name}": (dim, dim) for name in "qkvo"})
            single.update({f"{attention}.norm_{name}.weight": (dim,) for name in "qk"})
        if sla:
            linears[f"{block}.self_attn.attn_op.local_attn.proj_l"] = (HEAD_DIM, HEAD_DIM)
        single.update({f"{block}.norm3.{name}": (dim,) for name in ("weight", "bias")})
        linears[f"{block}.ffn.0"] = (ffn_dim, dim)
        linears[f"{block}.ffn.2"] = (dim, ffn_dim)
    for name, shape in linears.items():
        single.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})
    return single


def upstream_state_dict(
    seed: int,
    dim: int = 256,
    ffn_dim: int = 512,
    layers: int = 2,
    in_channels: int = 16,
    sla: bool = False,
    int8: bool = False,
) -> dict[str, torch.Tensor]:
    """A checkpoint as upstream publishes it: 16 channels for T2V, 36 for I2V."""
    named = shapes(dim, ffn_dim, layers, in_channels, sla)
    sd = {key: weight(seed, key, shape) for key, shape in named.items()}
    return quantized(sd) if int8 else sd


def stock(seed: int, **sizes) -> dict[str, torch.Tensor]:
    """A Wan model as ComfyUI's own files hold it: without proj_l, the patch embedding as a convolution."""
    sd = upstream_state_dict(seed, **sizes)
    conv = sd["patch_embedding.weight"].unflatten(1, (-1, 1, 2, 2)).contiguous()
    return {key: value for key, value in sd.items() if "proj_l" not in key} | {"patch_embedding.weight": conv}


def vace(seed: int) -> dict[str, torch.Tensor]:
    """VACE with one control block and a trained proj_l in the others, as Convert makes it from a turbo model."""
    sd = upstream_state_dict(seed, sla=True)
    shape = (256, 96, 1, 2, 2)
    extra = {"vace_patch_embedding.weight": shape, "vace_patch_embedding.bias": shape[:1]}
    for name in ("before_proj", "after_proj"):
        extra |= {f"vace_blocks.0.{name}.weight": (256, 256), f"vace_blocks.0.{name}.bias": (256,)}
    of_block = {key: value.shape for key, value in sd.items() if key.startswith("blocks.0.") and "proj_l" not in key}
    extra |= {f"vace_{key}": shape for key, shape in of_block.items()}
    conv = sd["patch_embedding.weight"].unflatten(1, (-1, 1, 2, 2)).contiguous()
    return sd | {"patch_embedding.weight": conv} | {key: weight(seed, key, tuple(s)) for key, s in extra.items()}


def i2v_21(seed: int) -> dict[str, torch.Tensor]:
    """Wan 2.1's I2V, which sees the picture through CLIP vision too, with a trained proj_l as Convert makes it from a
    turbo model."""
    sd = upstream_state_dict(seed, in_channels=36, sla=True)
    extra = {"img_emb.proj.1": (1280, 1280), "img_emb.proj.3": (256, 1280)}
    norms = {"img_emb.proj.0": 1280, "img_emb.proj.4": 256}
    for attention in ("blocks.0.cross_attn", "blocks.1.cross_attn"):
        extra |= {f"{attention}.{name}_img": (256, 256) for name in "kv"}
        sd[f"{attention}.norm_k_img.weight"] = torch.ones(256, dtype=torch.bfloat16)
    for name, shape in extra.items():
        sd |= {
            f"{name}.{part}": weight(seed, f"{name}.{part}", s) for part, s in (("weight", shape), ("bias", shape[:1]))
        }
    for name, width in norms.items():
        sd |= {f"{name}.weight": torch.ones(width).bfloat16(), f"{name}.bias": torch.zeros(width).bfloat16()}
    conv = sd["patch_embedding.weight"].unflatten(1, (-1, 1, 2, 2)).contiguous()
    return sd | {"patch_embedding.weight": conv}


def quantize(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes of a matrix and the float32 scale of each 128x128 tile."""
    w = w.float()
    rows, columns = w.shape
    padded = torch.nn.functional.pad(w, (0, -columns % TILE, 0, -rows % TILE))
    tiles = padded.unflatten(1, (-1, TILE)).unflatten(0, (-1, TILE))
    amax = tiles.abs().amax(dim=(1, 3)).clamp(min=1e-8)
    codes = (tiles * TILE / amax[:, None, :, None]).round().clamp(-128, 127).to(torch.int8)
    return codes.flatten(2).flatten(0, 1)[:rows, :columns].contiguous(), amax / TILE


def quantized(sd: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The checkpoint with the blocks' linears as int8, as upstream's quantizer leaves it."""
    result = {}
    for key, value in sd.items():
        if key.startswith("blocks.") and key.endswith(".weight") and value.ndim == 2 and "proj_l" not in key:
            name = key.removesuffix(".weight")
            result[f"{name}.int8_weight"], result[f"{name}.scale"] = quantize(value)
        else:
            result[key] = value.float() if "norm" in key else value
    return result


def vae_state_dict(seed: int = 7, dim: int = 8) -> dict[str, torch.Tensor]:
    """A Wan 2.1 VAE of a few channels, which the stock VAELoader takes; needs the host loaded."""
    from comfy.ldm.wan.vae import WanVAE

    vae = WanVAE(
        dim=dim,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        dropout=0.0,
    )
    sd = {}
    for key, value in vae.state_dict().items():
        if key.endswith("gamma"):
            sd[key] = torch.ones(value.shape)
        elif key.endswith("bias"):
            sd[key] = torch.zeros(value.shape)
        else:
            sd[key] = draw(seed, key, tuple(value.shape)) / value[0].numel() ** 0.5
    return sd


LORA_LAYERS = {
    "blocks.0.self_attn.q": (256, 256),
    "blocks.1.ffn.2": (256, 512),
    "blocks.1.self_attn.attn_op.local_attn.proj_l": (128, 128),
}


def lora(
    style: str = "diffusion_model", rank: int = 4, layers: dict[str, tuple[int, int]] = LORA_LAYERS, size: float = 0.2
) -> dict[str, torch.Tensor]:
    """A LoRA over three kinds of layer, or others, in a key style that ComfyUI maps; `size`: a factor's deviation."""
    state_dict = {}
    for name, (out_width, in_width) in layers.items():
        down, up = (
            draw(8, f"{name}.{part}", shape) * size
            for part, shape in (("down", (rank, in_width)), ("up", (out_width, rank)))
        )
        if style == "diffusion_model":
            state_dict |= {f"diffusion_model.{name}.lora_A.weight": down, f"diffusion_model.{name}.lora_B.weight": up}
        else:
            key = "lora_unet_" + name.replace(".", "_")
            state_dict |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
    return state_dict


def lora_change(layer: str) -> torch.Tensor:
    """What `lora` adds to the weight of one of LORA_LAYERS at strength 1."""
    down, up = (lora()[f"diffusion_model.{layer}.lora_{part}.weight"] for part in "AB")
    return up @ down


def write_pth(
    path: Path, sd: dict[str, torch.Tensor], wrap: bool = False, prefix: str = "", checksums: bool = True
) -> Path:
    """Saves as upstream does; `wrap` nests it under "state_dict", `prefix` goes before every key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sd = {prefix + key: value for key, value in sd.items()}
    torch.serialization.set_crc32_options(checksums)
    try:
        torch.save({"state_dict": sd} if wrap else sd, path)
    finally:
        torch.serialization.set_crc32_options(True)
    return path


def write_safetensors(path: Path, sd: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(sd, path, metadata)
    return path


def write(path: Path, sd: dict[str, torch.Tensor]) -> Path:
    """Saves in the format of the suffix."""
    return write_pth(path, sd) if path.suffix == ".pth" else write_safetensors(path, sd)


def write_models(models_dir: Path) -> None:
    """The tiny checkpoints of the shared server: T2V with SLA, I2V's two experts, I2V 2.1 and VACE with SLA, a VAE."""
    folder = models_dir / "diffusion_models"
    write_pth(folder / T2V_SLA, upstream_state_dict(1, sla=True))
    write_pth(folder / I2V_HIGH, upstream_state_dict(2, in_channels=36))
    write_pth(folder / I2V_LOW, upstream_state_dict(3, in_channels=36))
    write_safetensors(folder / I2V_21, i2v_21(5))
    write_safetensors(folder / VACE, vace(4))
    write_safetensors(models_dir / "vae" / VAE, vae_state_dict())


def write_toy_models(models_dir: Path) -> None:
    """Copies the trained toy models to where ComfyUI looks for models."""
    for folder, files in TOY_FILES.items():
        (models_dir / folder).mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy(TOY_WEIGHTS / file, models_dir / folder / file)


def golden_case(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """The metadata of a golden file (its `case`, `cases` or `actions`) and its tensors."""
    path = GOLDEN / f"{name}.safetensors"
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    described = next(metadata[key] for key in ("case", "cases", "actions") if key in metadata)
    return json.loads(described), safetensors.torch.load_file(path)


def golden_state_dicts(case: dict) -> list[dict[str, torch.Tensor]]:
    """The checkpoint of a golden case, or both experts', high first."""
    seeds = [seed for seed in (case["seed"], case["seed_low"]) if seed is not None]
    in_channels = {"t2v": 16, "i2v": 36}[case["kind"]]
    return [
        upstream_state_dict(
            seed,
            case["dim"],
            case["ffn"],
            case["layers"],
            in_channels,
            sla=case["sla_topk"] is not None,
            int8=case["int8"],
        )
        for seed in seeds
    ]
