"""`dev.py bench fallback`: sparse-linear attention in plain torch against full attention, on the same tensors of this
CPU."""

import argparse
import os
import platform
import resource
import statistics
import time
from pathlib import Path

HEADS, HEAD_DIM, TOPK = 12, 128, 0.1  # Wan 1.3B's heads


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench fallback", description=__doc__)
    parser.add_argument("--length", type=int, default=16384, help="tokens (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--need", type=float, default=4.0, help="fail below this ratio (default: %(default)s)")
    options = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(options.threads)
    print(
        f"{_processor()}, {options.threads} threads, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the "
        "start; "
        f"Python {platform.python_version()}, torch {torch.__version__}\n"
    )
    with torch.inference_mode():
        times = measure(options.length, options.repeat)
    dense, dense_cpu = map(statistics.median, zip(*times["dense"], strict=True))
    print(
        f"| L = {options.length}, {HEADS} heads, D = {HEAD_DIM}, float32 | median s | fastest s | slowest s | dense "
        "/ this "
        "| CPU s | dense / this |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, measured in times.items():
        seconds, cpu = zip(*measured, strict=True)
        middle, middle_cpu = statistics.median(seconds), statistics.median(cpu)
        print(
            f"| {name} | {middle:.2f} | {min(seconds):.2f} | {max(seconds):.2f} | {dense / middle:.2f} "
            f"| {middle_cpu:.2f} | {dense_cpu / middle_cpu:.2f} |"
        )
    print(f"\nPeak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB.")
    return 0 if dense / statistics.median(seconds for seconds, _ in times["sparse-linear"]) >= options.need else 1


def measure(length: int, repeat: int) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of each function by repetition, CPU seconds of all threads together. The functions are
    interleaved, so that other load on the machine affects all alike."""
    import torch
    import torch.nn.functional as F
    from td_pack.kernels.attention.batched.sla import add_linear_branch, block_sparse_attention, sparse_linear_attention
    from td_pack.kernels.attention.reference.sla import block_map

    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, length, HEADS, HEAD_DIM, generator=generator)
    weight, bias = torch.randn(HEAD_DIM, HEAD_DIM, generator=generator) / 12, torch.randn(HEAD_DIM, generator=generator)
    blocks, out = block_map(q, k, TOPK), torch.zeros_like(q)
    functions = {
        "dense": lambda: F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))),
        "sparse-linear": lambda: sparse_linear_attention(q, k, v, weight, bias, topk=TOPK),
        "of which the block map": lambda: block_map(q, k, TOPK),
        "of which the sparse branch": lambda: block_sparse_attention(q, k, v, blocks),
        "of which the linear branch": lambda: add_linear_branch(out, q, k, v, weight, bias),
    }
    times = {name: [] for name in functions}
    for _ in range(repeat):
        for name, function in functions.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            function()
            times[name].append((time.perf_counter() - start, time.process_time() - start_cpu))
    return times


def _processor() -> str:
    """The CPU's model, from /proc (Linux)."""
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
