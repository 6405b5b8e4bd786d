"""Text conditioning."""

import os
import time
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..turbo_core.host.prompt import with_seconds
from ..turbo_core.host.text_encode import text_conditioning
from ..turbo_core.text_cache import TextCache
from .loader import CATEGORY

_FOLDER = "text_encoders"


class TurboDiffusionTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionTextEncode",
            display_name="TurboDiffusion Text Encode",
            category=CATEGORY,
            essentials_category="Video Generation",
            description="Loads the umT5-XXL text encoder, encodes a prompt and frees the encoder. The result is "
            "cached on disk: a prompt used before needs no encoder. The conditioning is that of Load CLIP (wan) with "
            "CLIP Text Encode.",
            search_aliases=[
                "prompt",
                "CLIP Text Encode",
                "Load CLIP",
                "umT5",
                "T5",
                "positive prompt",
                "negative prompt",
                "cached prompt",
            ],
            inputs=[
                io.Combo.Input(
                    "encoder_name",
                    options=folder_paths.get_filename_list(_FOLDER),
                    tooltip="A umT5-XXL file in models/text_encoders, for example "
                    "umt5_xxl_fp8_e4m3fn_scaled.safetensors.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt. The models were trained on long English descriptions.",
                ),
                io.Boolean.Input(
                    "cache",
                    default=True,
                    tooltip="Keep the encoded prompt in ComfyUI's user folder (turbodiffusion/text_cache, up to 2 GB) "
                    "and read it from there the next time.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="The encoded prompt, for positive or negative.")],
        )

    @classmethod
    def fingerprint_inputs(cls, encoder_name: str, text: str, cache: bool) -> tuple[str | int, ...]:
        """Changes when the text or the encoder file changes."""
        status = os.stat(folder_paths.get_full_path_or_raise(_FOLDER, encoder_name))
        return (encoder_name, text, status.st_mtime_ns, status.st_size)

    @classmethod
    def execute(cls, encoder_name: str, text: str, cache: bool) -> io.NodeOutput:
        path = Path(folder_paths.get_full_path_or_raise(_FOLDER, encoder_name))
        store = TextCache(Path(folder_paths.get_user_directory()) / "turbodiffusion" / "text_cache") if cache else None
        embeddings = folder_paths.get_folder_paths("embeddings")
        began = time.perf_counter()
        conditioning = text_conditioning(path, encoder_name, text, embeddings, store)
        return io.NodeOutput(with_seconds(conditioning, "text encode", time.perf_counter() - began))
