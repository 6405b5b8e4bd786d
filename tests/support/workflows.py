"""The shipped workflows in API format, and how to run them on tiny test files."""

import copy
import json
from fnmatch import fnmatch
from pathlib import Path

from . import checkpoints, clip_vision, lingbot

API_WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows" / "api"
MODEL_SUFFIXES = (".pth", ".pt", ".safetensors", ".gguf")
TEXT_ENCODERS = ("CLIPTextEncode", "TurboDiffusionTextEncode")
# Patterns of shipped file names, and the tiny random file that takes the place of each.
TINY_FILES = {
    "*VACE*": checkpoints.VACE,
    "*T2V*": checkpoints.T2V_SLA,
    "*Wan2.1-I2V*": checkpoints.I2V_21,
    "*I2V*high*": checkpoints.I2V_HIGH,
    "*I2V*low*": checkpoints.I2V_LOW,
    "high_noise_model*": lingbot.HIGH,
    "low_noise_model*": lingbot.LOW,
    "*vae*": checkpoints.VAE,
    "lighttaew2_1*": checkpoints.DRAFT_VAE,
    "clip_vision*": clip_vision.FILE,
}


def load(name: str) -> dict:
    """A shipped workflow by its file name without the suffix."""
    return json.loads((API_WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def api_name(title: str) -> str:
    """The file name of the template of that title in API format, which is that of the video it saves."""
    nodes = json.loads((API_WORKFLOWS.parent / f"{title}.json").read_text(encoding="utf-8"))["nodes"]
    (save,) = (node for node in nodes if node["type"] == "SaveVideo")
    return save["widgets_values"][0].removeprefix("video/")


def is_link(value) -> bool:
    return isinstance(value, list)


def is_model_file(value) -> bool:
    return isinstance(value, str) and value.endswith(MODEL_SUFFIXES)


def fit(
    prompt: dict,
    *,
    models: dict[str, str],
    width: int,
    height: int,
    length: int,
    text_node: bool = True,
    toy_text: str | None = None,
) -> dict:
    """A copy of the prompt with other file names and another size.

    With `text_node` a TestTextEmbedding replaces the text encoder, or, with `toy_text`, the encoder of the toy world
    with that text; a language model becomes a TestLanguageModel. `models` maps patterns of the shipped file names to
    test files; the first match is used. A linked width or height becomes a number (it would be the size of a full
    picture). A linked length stays, and the camera path that it comes from becomes as short. Raises ValueError for a
    file that no pattern matches.
    """
    prompt = copy.deepcopy(prompt)
    if text_node:
        prompt = _without_text_encoder(prompt, toy_text)
    for node in prompt.values():
        inputs = node["inputs"]
        if {"width", "height"} <= inputs.keys():
            inputs.update(width=width, height=height)
        if "length" in inputs and not is_link(inputs["length"]):
            inputs["length"] = length
        if "max_length" in inputs:
            inputs["max_length"] = length
        for name, value in inputs.items():
            if is_model_file(value):
                inputs[name] = _replacement(value, models)
    return prompt


def _replacement(file: str, models: dict[str, str]) -> str:
    for pattern, test_file in models.items():
        if fnmatch(file.lower(), pattern.lower()):
            return test_file
    raise ValueError(f"No test file stands for {file}; the patterns are {', '.join(models)}.")


def _without_text_encoder(prompt: dict, toy_text: str | None) -> dict:
    nodes = {}
    writers = {node["inputs"]["clip"][0] for node in prompt.values() if node["class_type"] == "TextGenerate"}
    for key, node in prompt.items():
        if key in writers:
            node = node | {"class_type": "TestLanguageModel", "inputs": {}}
        if node["class_type"] in TEXT_ENCODERS:
            if toy_text is None:
                stand_in, inputs = "TestTextEmbedding", {"text": node["inputs"]["text"], "width": 4096}
            else:
                stand_in, inputs = "TestToyWorldText", {"text": toy_text}
            node = node | {"class_type": stand_in, "inputs": inputs}
        if node["class_type"] != "CLIPLoader":
            nodes[key] = node
    return nodes
