"""A file of another kind is told what it is and where it belongs."""

import pytest
import torch
from td_pack.tests.support.outlines import names, refusal, stock

FOREIGN = {
    "kohya LoRA": (
        names("lora_unet_blocks_0_self_attn_q.lora_down.weight", "lora_unet_blocks_0_self_attn_q.alpha"),
        "a LoRA",
        "LoraLoaderModelOnly",
    ),
    "PEFT LoRA": (
        names(
            "diffusion_model.blocks.0.self_attn.q.lora_A.weight", "diffusion_model.blocks.0.self_attn.q.lora_B.weight"
        ),
        "a LoRA",
        "LoraLoaderModelOnly",
    ),
    "Diffusers LoRA": (
        names(
            "transformer.blocks.0.attn1.to_q.lora_A.default.weight", "transformer.condition_embedder.x.lora_B.weight"
        ),
        "a LoRA",
        "LoraLoaderModelOnly",
    ),
    **{
        key: (names(f"diffusion_model.blocks.0.ffn.0.{key}"), "a LoRA", "LoraLoaderModelOnly")
        for key in ("lokr_w1", "hada_w1_a", "lora.up.weight", "lora_up.weight", "oft_blocks")
    },
    "LyCORIS": (names("lycoris_blocks_0_ffn_0.lokr_w1"), "a LoRA", "LoraLoaderModelOnly"),
    "Wan VAE": (names("encoder.conv1.weight", "conv2.weight", "decoder.head.0.gamma"), "a VAE", "models/vae"),
    "Stable Diffusion VAE": (names("encoder.conv_in.weight", "decoder.conv_in.weight"), "a VAE", "models/vae"),
    "umT5 of HF": (
        names("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"),
        "a text encoder",
        "models/text_encoders",
    ),
    "umT5 of upstream": (
        names("token_embedding.weight", "blocks.0.attn.q.weight", "norm.weight"),
        "a text encoder",
        "umt5_xxl",
    ),
    "CLIP text": (names("text_model.embeddings.token_embedding.weight"), "a text encoder", "with Load CLIP."),
    "CLIP vision": (names("vision_model.encoder.layers.0.mlp.fc1.weight"), "a CLIP vision model", "Load CLIP Vision"),
    "CLIP of upstream": (
        names("log_scale", "visual.patch_embedding.weight", "visual.transformer.0.attn.proj.weight"),
        "a CLIP vision model",
        "Load CLIP Vision",
    ),
    "Diffusers Wan": (
        {
            **names(
                "condition_embedder.time_embedder.linear_1.weight", "blocks.0.attn1.to_q.weight", "proj_out.weight"
            ),
            "patch_embedding.weight": torch.empty(1536, 16, 1, 2, 2, device="meta"),
        },
        "in the Diffusers layout",
        "original TurboDiffusion or ComfyUI file",
    ),
    "all in one": (
        {f"model.diffusion_model.{key}": t for key, t in stock().items()} | names("vae.conv1.weight"),
        "an all-in-one checkpoint",
        "Load Checkpoint",
    ),
    "another model": (
        names("double_blocks.0.img_attn.proj.weight", "img_in.weight"),
        "'double_blocks.0.img_attn.proj.weight'",
        "Load Diffusion Model",
    ),
}


@pytest.mark.parametrize("tensors, kind, advice", FOREIGN.values(), ids=FOREIGN)
def test_a_file_of_another_kind_is_named_with_its_node(tensors, kind, advice):
    text = refusal(tensors)
    assert kind in text and advice in text and "missing" not in text


@pytest.mark.parametrize("in_channels, out_channels", [(48, 48), (32, 16), (52, 16), (16, 48)])
def test_wan_with_other_channels_belongs_to_comfyuis_loader(in_channels, out_channels):
    """48 in and out is Wan 2.2 TI2V 5B; 32 and 52 are control models."""
    tensors = {**stock(in_channels=in_channels), "head.head.weight": torch.empty(out_channels * 4, 256, device="meta")}
    text = refusal(tensors)
    assert f"{in_channels} input and {out_channels} output channels" in text and "use Load Diffusion Model" in text


OTHER_WAN = {
    "VACE": ("vace_patch_embedding.weight", "vace_blocks.0.self_attn.q.weight"),
    "Fun Camera": ("control_adapter.conv.weight",),
    "Fun Control": ("ref_conv.weight",),
    "S2V": ("casual_audio_encoder.encoder.conv.weight",),
    "HuMo": ("audio_proj.audio_proj_glob_1.layer.weight",),
    "Animate": ("face_adapter.fuser_blocks.0.linear1_q.weight",),
}


@pytest.mark.parametrize("kind", OTHER_WAN)
@pytest.mark.parametrize("in_channels", [16, 36])
def test_another_kind_of_wan_belongs_to_comfyuis_loader(kind, in_channels):
    text = refusal({**stock(in_channels=in_channels), **names(*OTHER_WAN[kind])})
    assert f"is Wan {kind};" in text and "use Load Diffusion Model" in text


def test_an_unknown_kind_of_wan_belongs_to_comfyuis_loader():
    text = refusal({**stock(), **names("new_adapter.weight")})
    assert "1 unexpected: new_adapter.weight." in text and "load it with Load Diffusion Model" in text


def test_an_odd_width_is_refused():
    assert "300 wide, which is not a multiple of 128" in refusal(stock(dim=300))
