"""`dev.py bench parallel`: a step of one model on one device and on several, in one run, interleaved.

On a machine with GPUs each of 1, 2, 4, ... of them, with NCCL; without one processes on the CPU with gloo and one
thread each, where the exchange is a copy in memory and only the ratio means something. `sent` is what a rank sends in a
step. The model has random int8 weights of the published width and as many of its layers as asked for."""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

SIZES = {  # width, feed-forward, layers, heads, latent of 81 frames at 480p or 720p
    "1.3B": (1536, 8960, 30, 12, (21, 60, 104)),
    "14B": (5120, 13824, 40, 40, (21, 90, 160)),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench parallel", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="1.3B")
    parser.add_argument("--layers", type=int, help="of the model (all on GPUs, 2 on a CPU)")
    parser.add_argument(
        "--latent", type=int, nargs=3, metavar=("T", "H", "W"), help="of the video (81 frames; small on a CPU)"
    )
    parser.add_argument("--repeat", type=int, default=3, help="steps of each, of which the median counts (3)")
    options = parser.parse_args(arguments)
    from td_pack.tests.support.host import load_host

    load_host()
    import torch

    on_gpu = torch.cuda.is_available()
    width, ffn_dim, layers, heads, latent = SIZES[options.size]
    layers = options.layers or (layers if on_gpu else 2)
    latent = tuple(options.latent or (latent if on_gpu else (5, 32, 32)))
    most = torch.cuda.device_count() if on_gpu else 2
    counts = [count for count in range(1, most + 1) if heads % count == 0]
    if not on_gpu:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="turbodiffusion-bench-") as folder:
        from td_pack.tests.bench.full_size import write_expert

        path = write_expert(
            Path(folder, "model.safetensors"), 1, dim=width, ffn_dim=ffn_dim, layers=layers, in_channels=16
        )
        models = {count: model(path, count) for count in counts}
        seconds: dict[int, list[float]] = {count: [] for count in counts}
        for repeat in range(options.repeat + 1):
            for count, each in models.items():
                took = step(each, latent)
                if repeat:  # the first loads weights, starts processes and compiles
                    seconds[count].append(took)
    tokens = latent[0] * latent[1] * latent[2] // 4
    device = torch.cuda.get_device_name() if on_gpu else "CPU, one thread each"
    print(f"{options.size}, {layers} layers, int8, sparse attention, {tokens} tokens; {device}.\n")
    print("| ranks | a step | speed | a rank sends in a step |\n|---|---|---|---|")
    from td_pack.turbo_core.parallel.shares import exchanged_bytes

    item = 2 if on_gpu else 4
    for count, of in seconds.items():
        median = statistics.median(of)
        sent = layers * exchanged_bytes(tokens, 0, count, width, item) / 1e6
        print(f"| {count} | {median:.2f} s | {statistics.median(seconds[1]) / median:.2f} | {sent:.0f} MB |")
    return 0


def model(path: Path, count: int) -> Any:
    """The model on a number of devices, loaded."""
    import comfy.model_management
    from td_pack.turbo_core.host.load import load_model
    from td_pack.turbo_core.host.parallel import with_parallel

    patcher, _ = with_parallel(load_model(str(path)), count, "auto", "")
    comfy.model_management.load_models_gpu([patcher])
    return patcher


def step(patcher: Any, latent: tuple[int, ...]) -> float:
    """Seconds of a step."""
    import torch

    patcher.pre_run()
    device = patcher.load_device
    x, text = torch.randn(1, 16, *latent, device=device), torch.randn(1, 512, 4096, device=device)
    options = dict(patcher.model_options["transformer_options"])
    begin = time.perf_counter()
    with torch.inference_mode():
        patcher.model.apply_model(x, torch.tensor([0.9], device=device), c_crossattn=text, transformer_options=options)
        if device.type == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - begin
