"""`dev.py bench NAME`: measurements; they assert nothing."""

import importlib
import sys

BENCHES = {
    "load": "time and memory of loading full-size int8 and NF4 experts",
    "convert": "time and memory of converting one",
    "memory": "memory of a whole run by phase: text encoder, two 14B experts, VAE",
    "switch": "what the switch between two experts costs from a cold disk",
    "ahead": "what of two experts' files is in memory when, in a job that begins with none of them in it",
    "batch": "40 jobs with a worker killed twice, overhead over queueing by hand, throughput over workers",
    "soak": "hundreds of mixed prompts, ten clients at once, servers and workers killed: what grows, what is lost",
    "attacks": "runs the tests that attack the pack, and counts them: docs/benchmarks/attacks.md",
    "decode": "memory of decoding 81 and 161 frames, beside ComfyUI's own decode",
    "text": "time and memory of encoding a prompt with a full-size umT5-XXL, and of having it kept",
    "lora": "time and memory of a LoRA applied, changed and removed on a bf16 expert, beside the stock node",
    "mutants": "how many small defects in the product the tests notice",
    "weight": "lines of tests for each line of product",
    "fallback": "sparse-linear attention in plain torch on this CPU against full attention",
    "predict": "seconds a step on GPUs that are not here, predicted from compiled code (docs/benchmarks/predicted.md)",
    "parallel": "a step on one device and on several, with what they exchange",
    "step": "whole steps of 1.3B and 14B models on this machine's GPU beside ComfyUI's stock model, and a job by phase",
    "compile": "seconds to compile a model's kernels for GPUs that are not here (docs/benchmarks/compile.md)",
    "kernels": "the kernels on this machine's GPU, in the Python that starts it (torch and triton are enough)",
}
STANDALONE = ("kernels", "predict")  # need neither ComfyUI nor its environment


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in BENCHES:
        print(
            "\n".join(["dev.py bench NAME", *(f"  {name:8} {what}" for name, what in BENCHES.items())]), file=sys.stderr
        )
        return 2
    return importlib.import_module(f".{arguments[0]}", __package__).main(arguments[1:])
