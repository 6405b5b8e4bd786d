"""`python launch.py host_jobs.py JOB ...`: runs small jobs in this process, on plain torch and with no weight resident,
and prints a digest of each result. For test_host_defects.py, in a copy of the pack."""

import hashlib
import os
import sys
import tempfile
from pathlib import Path

import torch
from td_pack.tests.support import checkpoints, host

SHAPE = (1, 16, 3, 8, 8)


def _model(name: str, seed: int, lora: bool = False, **sizes):
    from td_pack.turbo_core.host.load import load_model
    from td_pack.turbo_core.host.lora import with_lora

    path = Path(tempfile.mkdtemp()) / f"{name}.pth"
    model = load_model(str(checkpoints.write_pth(path, checkpoints.upstream_state_dict(seed, **sizes))))
    return with_lora(model, "lora", checkpoints.lora("diffusion_model"), 0.1)[0] if lora else model


def _sampled(high, low=None, steps: int = 2, **options) -> torch.Tensor:
    from td_pack.turbo_core.host.run import run

    text = [[checkpoints.draw(1, "text", (1, 512, 4096)), options]]
    return run(high, text, {"samples": torch.zeros(SHAPE)}, 3, steps, 0, 0.9, "sde", "cpu", low)["samples"]


def t2v() -> torch.Tensor:
    """bf16 with sparse attention."""
    return _sampled(_model("t2v", 1, sla=True))


def int8_lora() -> torch.Tensor:
    """int8 with a LoRA that also changes the projection."""
    return _sampled(_model("int8", 2, sla=True, int8=True, lora=True))


def experts() -> torch.Tensor:
    """Two experts, two steps each."""
    image = {"concat_latent_image": checkpoints.draw(3, "image", SHAPE), "concat_mask": torch.ones(1, 1, *SHAPE[2:])}
    high, low = (_model(name, seed, in_channels=36) for name, seed in (("high", 4), ("low", 5)))
    return _sampled(high, low, 4, **image)


def decode() -> torch.Tensor:
    """The streamed decoder."""
    import comfy.sd
    from td_pack.turbo_core.host.decode import decode_images

    return decode_images(comfy.sd.VAE(sd=checkpoints.vae_state_dict()), checkpoints.draw(9, "latent", SHAPE))


JOBS = {job.__name__: job for job in (t2v, int8_lora, experts, decode)}


def main(names: list[str]) -> None:
    """Prints a line "NAME DIGEST" for each job."""
    sys.argv = [sys.argv[0], "--reserve-vram", "0"]
    sys.path.insert(0, host.comfyui_path())
    import comfy.options

    comfy.options.enable_args_parsing()
    from td_pack.kernels import use_backend

    for name in names:
        with torch.inference_mode(), use_backend("torch"):
            result = JOBS[name]().float().cpu().contiguous()
        os.write(1, f"{name} {hashlib.sha256(result.numpy().tobytes()).hexdigest()}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1:])
