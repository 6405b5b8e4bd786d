"""Which tensors a Wan model has, by name and shape."""

import dataclasses
import re
from collections.abc import Iterable

import torch

from ...kernels import tile_count
from .keys import PATCH_EMBEDDING, PATCH_SIZE
from .variants import I2V, T2V, variant_name

HEAD_DIM = 128
FREQUENCIES = 256  # width of the sinusoidal timestep embedding
IMAGE_EMBEDDING_WIDTH = 1280  # CLIP vision, Wan 2.1 I2V only
LATENT_CHANNELS = 16
TEXT_WIDTH = 4096  # umT5-XXL
# LingBot-World's control: channels of 8x8 pixels in a 2x2 patch, [ray origin, ray direction] or [ray direction, 4 keys]
CONTROLS = {6 * 64 * 4: "cam", 7 * 64 * 4: "act"}
CAMERA_EMBEDDING = "patch_embedding_wancamctrl"
_CAMERA_LAYERS = ("c2ws_hidden_states_layer1", "c2ws_hidden_states_layer2")
_CAMERA_BLOCK_LAYERS = ("cam_injector_layer1", "cam_injector_layer2", "cam_scale_layer", "cam_shift_layer")
PROJ_L = "self_attn.attn_op.local_attn.proj_l"
TILED = ("blocks.", "vace_blocks.")  # where linears may be int8 in tiles
# At most three digits: a larger number makes a name unexpected instead of a model with that many layers.
_BLOCK = re.compile(r"blocks\.(\d{1,3})\.")


@dataclasses.dataclass(frozen=True)
class WanSpec:
    """What a checkpoint is, read from its tensors. `turbo`: made by TurboDiffusion; `sla`: has a trained `proj_l`;
    `int8`: has weights in 128x128 tiles; `four_bit`: "nf4" or "fp4" if it has bitsandbytes' 4-bit weights; `camera`:
    LingBot-World's kind of control, "cam" or "act"; `variant`: the name of its entry in `variants`, empty for a Wan
    model that only ComfyUI knows; `trained_as`: the task for which the few steps of a model made by a delta were
    trained, empty for the model's own."""

    turbo: bool
    sla: bool
    dim: int
    ffn_dim: int
    layers: int
    in_channels: int
    text_width: int
    image_embedding: bool = False
    image_positions: int | None = None
    int8: bool = False
    four_bit: str = ""
    camera: str = ""
    out_channels: int = LATENT_CHANNELS
    variant: str = T2V
    trained_as: str = ""

    @property
    def takes_image(self) -> bool:
        """Whether channels beside the video's are put in: an image, or the picture of a control."""
        return self.in_channels > self.out_channels

    @property
    def sigma_max(self) -> float:
        """Where TurboDiffusion's schedule starts for the task that the model was trained for."""
        return 200.0 if self.steps_of == I2V else 80.0

    @property
    def task(self) -> str:
        """T2V, or I2V for a model that takes an image or the picture of a control."""
        return I2V if self.takes_image else T2V

    @property
    def steps_of(self) -> str:
        """The task whose schedule and sampler the model's few steps are for."""
        return self.trained_as or self.task

    def describe(self) -> str:
        """The model in a few words, for example "TurboWan T2V 1.3B int8 with SLA"."""
        kind = "TurboWan" if self.turbo else "Wan"
        if self.camera:
            kind = f"LingBot-World {self.camera}"
        size = {(1536, 30): "1.3B", (3072, 30): "5B", (5120, 40): "14B"}.get(
            (self.dim, self.layers), f"{self.layers} layers of width {self.dim}"
        )
        variant = self.task if self.camera else self.variant or self.task
        weights = " int8" if self.int8 else f" {self.four_bit.upper()}" if self.four_bit else ""
        return f"{kind} {variant} {size}{weights}{' with SLA' if self.sla else ''}"


def count_layers(names: Iterable[str]) -> int:
    """One more than the highest block number among tensor names."""
    return max((int(m.group(1)) for m in map(_BLOCK.match, names) if m), default=-1) + 1


def read_spec(tensors: dict[str, torch.Tensor], turbo: bool, four_bit: str = "") -> WanSpec:
    """The spec of a Wan state dict in ComfyUI's names and float shapes; `turbo` and `four_bit` if that is known
    already. A camera control of unknown width is "other". Raises KeyError for a file that lacks what it is read
    from."""
    positions = tensors.get("img_emb.emb_pos")
    sla, int8 = any(PROJ_L in name for name in tensors), bool(tile_layers(tensors))
    in_channels, out_channels = tensors[PATCH_EMBEDDING].shape[1], tensors["head.head.weight"].shape[0] // 4
    image_embedding = any(name.startswith("img_emb.proj.") for name in tensors)
    camera = ""
    if any(name.startswith((CAMERA_EMBEDDING, *_CAMERA_LAYERS)) for name in tensors):
        camera = CONTROLS.get(tensors[f"{CAMERA_EMBEDDING}.weight"].shape[-1], "other")
    return WanSpec(
        turbo=turbo or sla or (int8 and not camera),  # LingBot-World in int8 tiles is LingBot-World
        sla=sla,
        int8=int8,
        dim=tensors["head.modulation"].shape[-1],
        ffn_dim=tensors["blocks.0.ffn.0.weight"].shape[0],
        layers=count_layers(tensors),
        in_channels=in_channels,
        text_width=tensors["text_embedding.0.weight"].shape[-1],
        image_embedding=image_embedding,
        image_positions=None if positions is None else positions.shape[1],
        four_bit=four_bit,
        camera=camera,
        out_channels=out_channels,
        variant=variant_name(tensors, in_channels, out_channels, image_embedding),
    )


def tile_layers(tensors: dict[str, torch.Tensor]) -> set[str]:
    """The linears whose weight is int8 in 128x128 tiles: TurboDiffusion's format, not one of ComfyUI's own."""
    int8 = (name.removesuffix(".weight") for name, tensor in tensors.items() if tensor.dtype == torch.int8)
    return {layer for layer in int8 if f"{layer}.weight" in tensors and f"{layer}.comfy_quant" not in tensors}


def tile_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the scales of an int8 weight: one for each 128x128 tile."""
    return tuple(tile_count(size) for size in shape)


def expected_shapes(spec: WanSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor of the trunk of a model with this spec, in ComfyUI's names and shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    dim = spec.dim

    def linear(name: str, out_width: int, in_width: int) -> None:
        shapes[f"{name}.weight"] = (out_width, in_width)
        shapes[f"{name}.bias"] = (out_width,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = (width,)
        shapes[f"{name}.bias"] = (width,)

    shapes[PATCH_EMBEDDING] = (dim, spec.in_channels, *PATCH_SIZE)
    shapes["patch_embedding.bias"] = (dim,)
    linear("text_embedding.0", dim, spec.text_width)
    linear("text_embedding.2", dim, dim)
    linear("time_embedding.0", dim, FREQUENCIES)
    linear("time_embedding.2", dim, dim)
    linear("time_projection.1", 6 * dim, dim)
    for i in range(spec.layers):
        block = f"blocks.{i}"
        shapes[f"{block}.modulation"] = (1, 6, dim)
        for attention in ("self_attn", "cross_attn"):
            for name in "qkvo":
                linear(f"{block}.{attention}.{name}", dim, dim)
            shapes[f"{block}.{attention}.norm_q.weight"] = (dim,)
            shapes[f"{block}.{attention}.norm_k.weight"] = (dim,)
        if spec.image_embedding:
            linear(f"{block}.cross_attn.k_img", dim, dim)
            linear(f"{block}.cross_attn.v_img", dim, dim)
            shapes[f"{block}.cross_attn.norm_k_img.weight"] = (dim,)
        if spec.sla:
            linear(f"{block}.{PROJ_L}", HEAD_DIM, HEAD_DIM)
        if spec.camera:
            for name in _CAMERA_BLOCK_LAYERS:
                linear(f"{block}.{name}", dim, dim)
        norm(f"{block}.norm3", dim)
        linear(f"{block}.ffn.0", spec.ffn_dim, dim)
        linear(f"{block}.ffn.2", dim, spec.ffn_dim)
    shapes["head.modulation"] = (1, 2, dim)
    linear("head.head", spec.out_channels * 4, dim)
    if spec.camera:
        linear(CAMERA_EMBEDDING, dim, next(width for width, name in CONTROLS.items() if name == spec.camera))
        for name in _CAMERA_LAYERS:
            linear(name, dim, dim)
    if spec.image_embedding:
        norm("img_emb.proj.0", IMAGE_EMBEDDING_WIDTH)
        linear("img_emb.proj.1", IMAGE_EMBEDDING_WIDTH, IMAGE_EMBEDDING_WIDTH)
        linear("img_emb.proj.3", dim, IMAGE_EMBEDDING_WIDTH)
        norm("img_emb.proj.4", dim)
    if spec.image_positions is not None:
        shapes["img_emb.emb_pos"] = (1, spec.image_positions, IMAGE_EMBEDDING_WIDTH)
    return shapes
