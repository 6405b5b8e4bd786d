"""The nodes that replace those of older TurboDiffusion packs, so that workflows made with them open and run without
those packs.

ComfyUI applies a replacement only where the old node is missing: in the editor (Replace in the list of missing nodes)
and at POST /prompt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import execution
from comfy_api.latest import ComfyAPI, io

from ..turbo_core.host.features import before_each_prompt, node_replacements, nodes_of

_SEED = "control after generate"  # the widget that the editor adds after a seed; a saved workflow holds its value too


@dataclass(frozen=True)
class Old:
    """A node of another pack and its replacement.

    `ids` are the old node's ids, `widgets` its widgets in the order in which workflows save them, `inputs` the inputs
    that the new node takes from the old one: a name that both have, or (new, old). `fixed` are values of further inputs
    of the new node. `absent` are defaults of old inputs that an API prompt may leave out; ComfyUI's replacement needs
    them all."""

    ids: tuple[str, ...]
    new: str
    widgets: tuple[str, ...]
    inputs: tuple[str | tuple[str, str], ...]
    fixed: Mapping[str, object] = field(default_factory=dict)
    absent: Mapping[str, object] = field(default_factory=dict)

    @property
    def names(self) -> dict[str, str]:
        """The new node's input by the old node's."""
        return dict((name[1], name[0]) if isinstance(name, tuple) else (name, name) for name in self.inputs)

    def replacements(self) -> list[Any]:
        """io.NodeReplace for each of the ids."""
        mapping: list[dict[str, object]] = [{"new_id": new, "old_id": old} for old, new in self.names.items()]
        mapping += [{"new_id": new, "set_value": value} for new, value in self.fixed.items()]
        return [io.NodeReplace(self.new, old, list(self.widgets), mapping, self._outputs()) for old in self.ids]

    def _outputs(self) -> list[dict[str, int]]:
        count = 3 if self.new == "WanImageToVideo" else 1
        return [{"new_idx": index, "old_idx": index} for index in range(count)]


_RUN = ("num_frames", "num_steps", "resolution", "aspect_ratio")
# From the packs' sources: anveshane/Comfyui_turbodiffusion (and its forks) and
# trandangtrungduc/Comfyui-TurboDiffusion-T2V.
OLD = (
    Old(
        ("TurboWanModelLoader", "TurboWanT2VModelLoader"),
        "TurboDiffusionLegacyLoader",
        ("model_name", "attention_type", "sla_topk", "offload_mode"),
        ("model_name", "attention_type", "sla_topk"),
        absent={"attention_type": "sla", "sla_topk": 0.1},
    ),
    Old(("TurboWanVAELoader", "TurboWanT2VVAELoader"), "VAELoader", ("vae_name",), ("vae_name",)),
    Old(
        ("TurboWanT5Loader", "TurboWanT2VT5Loader"),
        "CLIPLoader",
        ("encoder_name",),
        (("clip_name", "encoder_name"),),
        fixed={"type": "wan", "device": "default"},
    ),
    Old(
        ("TurboWanSampler",),
        "WanImageToVideo",
        ("width", "height", "length", "batch_size"),
        ("positive", "negative", "vae", "width", "height", "length", "batch_size", "start_image", "clip_vision_output"),
        absent={"start_image": None, "clip_vision_output": None},
    ),
    Old(
        ("TurboDiffusionI2VSampler",),
        "TurboDiffusionLegacyI2V",
        (*_RUN, "boundary", "sigma_max", "seed", _SEED, "use_ode", "width", "height"),
        (
            *("high_noise_model", "low_noise_model", "conditioning", "vae", "image", *_RUN),
            *("boundary", "sigma_max", "seed", "use_ode", "width", "height"),
        ),
        absent={"width": 480, "height": 480},  # a later addition to that node
    ),
    Old(
        ("TurboDiffusionT2VSampler",),
        "TurboDiffusionLegacyT2V",
        ("prompt", *_RUN, "sigma_max", "seed", _SEED, "use_ode"),
        ("model", "prompt", "vae", *_RUN, "sigma_max", "seed", "use_ode", "conditioning", "text_encoder"),
        absent={"conditioning": None, "text_encoder": None},
    ),
    Old(
        ("TurboDiffusionSaveVideo", "TurboDiffusionT2VSaveVideo"),
        "TurboDiffusionLegacySaveVideo",
        ("filename_prefix", "fps", "format", "quality", "optimize_gif"),
        ("frames", "filename_prefix", "fps", "format"),
    ),
)


def with_absent_inputs(request: dict[str, Any]) -> dict[str, Any]:
    """Adds the `absent` inputs to the old nodes in a request of POST /prompt that this server lacks. Any other input
    that is missing becomes a value that ComfyUI refuses by name, since its replacement fails without one."""
    absent = {old_id: {**dict.fromkeys(old.names, [None]), **old.absent} for old in OLD for old_id in old.ids}
    present = execution.nodes.NODE_CLASS_MAPPINGS
    for node in nodes_of(request):
        kind = node["class_type"]
        if kind in absent and kind not in present:
            node["inputs"] = absent[kind] | node["inputs"]
            node["_meta"] = node["_meta"] if isinstance(node.get("_meta"), dict) else {}  # the replacement reads it
    return request


async def register() -> None:
    """Registers the replacements, where the host has them."""
    register_of_nodes = node_replacements(ComfyAPI(), io)
    if register_of_nodes is None:
        return
    for old in OLD:
        for entry in old.replacements():
            await register_of_nodes.register(entry)
    before_each_prompt(with_absent_inputs)
