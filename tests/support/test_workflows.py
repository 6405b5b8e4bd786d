"""Fitting a shipped workflow to tiny files changes names, size and text, and nothing else."""

from td_pack.tests.support.workflows import fit, missing_files

MODELS = {"*high*": "tiny_high.pth", "*vae*": "tiny_vae.safetensors"}
SIZE = {"width": 64, "height": 48, "length": 9}


def shipped() -> dict:
    return {
        "1": {"class_type": "TurboDiffusionLoader", "inputs": {"model_name": "Wan-HIGH.pth", "dtype": "auto"}},
        "2": {"class_type": "CLIPLoader", "inputs": {"clip_name": "umt5.safetensors", "type": "wan"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["2", 0]}},
        "4": {"class_type": "VAELoader", "inputs": {"vae_name": "wan_vae.safetensors"}},
        "5": {
            "class_type": "WanImageToVideo",
            "inputs": {"positive": ["3", 0], "vae": ["4", 0], "width": ["6", 1], "height": 720, "length": 81},
        },
        "6": {"class_type": "LoadImage", "inputs": {"image": "example.png"}},
    }


def test_names_size_and_text_change_and_nothing_else():
    original = shipped()
    fitted = fit(original, models=MODELS, **SIZE)
    assert original == shipped()
    assert fitted == {
        "1": {"class_type": "TurboDiffusionLoader", "inputs": {"model_name": "tiny_high.pth", "dtype": "auto"}},
        "3": {"class_type": "TestTextEmbedding", "inputs": {"text": "a fox", "width": 4096}},
        "4": {"class_type": "VAELoader", "inputs": {"vae_name": "tiny_vae.safetensors"}},
        "5": {"class_type": "WanImageToVideo", "inputs": {"positive": ["3", 0], "vae": ["4", 0], **SIZE}},
        "6": original["6"],
    }


def test_missing_files_are_those_the_server_does_not_list():
    def info(*inputs):
        return {"input": {"required": dict(inputs)}}

    prompt = {key: node for key, node in shipped().items() if key in "14"}
    server = {
        "TurboDiffusionLoader": info(("model_name", ["COMBO", {"options": ["other.pth"]}]), ("dtype", [["auto"], {}])),
        "VAELoader": info(("vae_name", [["wan_vae.safetensors"], {}])),
    }
    assert missing_files(prompt, server) == ["diffusion_models/Wan-HIGH.pth"]
