"""`dev.py tiny`: trains the toy models again, stage by stage, or measures them."""

import argparse
import logging
from pathlib import Path

import safetensors.torch
import torch

from ..support.environment import cache_dir
from ..support.host import load_host

STAGES = ("vae", "t2v_where", "t2v", "i2v_high", "i2v_low", "i2v_last", "t2v_sla", "lora", "teacher", "fine_tune")
PARTS = ("t2v", "int8", "attention", "i2v", "lora", "last", "long", "delta")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py tiny", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train what is not finished, then write tests/tiny/weights")
    training.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)} (all)")
    training.add_argument("--work", type=Path, help="where checkpoints and cached latents lie (the cache folder)")
    training.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the processor (all)")
    measuring = commands.add_parser("measure", help="the tables of docs/benchmarks/tiny.md and their contact sheets")
    measuring.add_argument("--work", type=Path, help="where the dense model lies that training left (the cache folder)")
    measuring.add_argument("--out", type=Path, default=Path("demo_output"), help="where the results go")
    measuring.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="which tables (all)")
    measuring.add_argument("--clips", type=int, default=64, help="of each row (64)")
    options = parser.parse_args(arguments)
    unknown = set(getattr(options, "stages", ())) - set(STAGES)
    if unknown:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    load_host()
    work = options.work or cache_dir() / "tiny"
    if options.command == "train":
        torch.set_num_threads(options.threads)
        train(options.stages or STAGES, work)
    else:
        from . import measure

        dense = work / "t2v_dense.pth"
        measure.measure(
            measure.models.WEIGHTS,
            options.out,
            dense if dense.exists() else None,
            options.parts,
            options.clips,
            lambda row: print(row, flush=True),
        )
        print(options.out.resolve())
    return 0


def train(stages, work: Path) -> None:
    """Runs or resumes the stages in order. Each one's weights are written as they are committed, and the next starts
    from those of this run."""
    from . import models
    from .training import canvases, train_delta, train_dit, train_last_frame, train_more, train_vae

    def vae() -> torch.nn.Module:
        return models.load_vae()

    def data() -> canvases.Canvases:
        return canvases.load(vae(), work / "canvases.pt")

    def load(name: str, folder: Path = models.WEIGHTS) -> dict[str, torch.Tensor]:
        return {key: value.float() for key, value in torch.load(folder / name, weights_only=True).items()}

    for stage in stages:
        if stage == "vae":
            models.write(models.VAE, train_vae.run(work))
        elif stage == "t2v_where":
            models.write("t2v_where.pth", train_dit.run(train_dit.WHERE, None, work), work)
        elif stage == "t2v":
            models.write("t2v_dense.pth", train_dit.run(train_dit.T2V, data(), work, load("t2v_where.pth", work)), work)
        elif stage == "i2v_high":
            models.write("i2v_high.pth", train_dit.run(train_dit.HIGH, data(), work), work)
        elif stage == "i2v_low":
            models.write("i2v_low.pth", train_dit.run(train_dit.LOW, data(), work), work)
        elif stage == "i2v_last":
            clips = train_last_frame.load(vae(), work / "last_frames.pt")
            high, low = (load(name, work) for name in ("i2v_high.pth", "i2v_low.pth"))
            models.write(models.I2V_HIGH, train_last_frame.run(train_last_frame.HIGH, high, clips, work))
            models.write(models.I2V_LOW, train_last_frame.run(train_last_frame.LOW, low, clips, work))
        elif stage == "t2v_sla":
            models.write(models.T2V, train_more.run_sla(load("t2v_dense.pth", work), data(), work))
        elif stage == "lora":
            turquoise = train_more.recolor(data(), vae(), work / "turquoise.pt")
            models.write(models.LORA, train_more.run_lora(load(models.T2V), turquoise, work))
        elif stage == "teacher":
            models.write(models.TEACHER, train_more.as_file(train_delta.run_teacher(load(models.T2V), work)))
        elif stage == "fine_tune":
            lora = {k: v.float() for k, v in safetensors.torch.load_file(models.WEIGHTS / models.TEACHER).items()}
            teacher = train_more.patched(load(models.T2V), train_more.from_file(lora))
            models.write(models.FINE_TUNE, train_more.as_file(train_delta.run_fine_tune(teacher, vae(), work)))
