"""`python launch.py first_use.py`: loads models and runs a step of each, and prints as JSON which kernels were compiled,
or read from Triton's cache, by which threads, before the step and in it. For test_first_use.py."""

import json
import os
import sys

import torch
from td_pack.tests.simulated_gpu.device.host_jobs import _model, _sampled
from td_pack.tests.support import host
from td_pack.tests.support.compiling import Compilations

# 384 wide, or the self-tests, which are 256 wide, would compile what a model needs.
MODELS = {
    "int8": {"sla": True, "int8": True, "dim": 384},
    "bf16": {"sla": True, "dim": 384},
}


def main() -> None:
    sys.argv = [sys.argv[0], "--reserve-vram", "0"]
    sys.path.insert(0, host.comfyui_path())
    import comfy.options

    comfy.options.enable_args_parsing()
    from td_pack.kernels import background_compiler
    from td_pack.turbo_core.host.kernels_ahead import compile_kernels

    counted, said = Compilations(), {}
    for name, options in MODELS.items():
        model = _model("model", 2, **options)
        compile_kernels(model)
        background_compiler(model.load_device).wait()
        ahead = counted.all()
        with torch.inference_mode():
            assert _sampled(model, steps=1).isfinite().all()
        said[name] = {"ahead": len(ahead), "in the step": counted.all()[len(ahead) :]}
    os.write(1, json.dumps({"models": said, "threads": sorted(counted.threads)}).encode())


if __name__ == "__main__":
    main()
