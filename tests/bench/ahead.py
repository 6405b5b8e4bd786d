"""`dev.py bench ahead`: how much of each expert's file is in the page cache, phase by phase of a job on a live server
that begins with neither in it: text encoder, two int8 experts of the A14B's width, two steps of each.

It fails unless the first expert's file is read by the end of the text encoder, and the second's by the switch."""

import argparse
import ctypes
import mmap
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

from .memory import EXPERT, GB
from .phases import ENCODER, HIGH, LOW, PROMPT, paths_file
from .switch import drop

TEXT_WIDTH = 512  # of an encoder that a CPU needs seconds for
PHASES = {"text": "text encoder", "model": "load the high expert", "low": "load the low expert", "sample": "high 1"}
STEPS = ("high 2", "low 1", "low 2", "end")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench ahead", description=__doc__)
    parser.add_argument("--dir", type=Path, help="where the files go for the while (default: the temporary folder)")
    parser.add_argument("--layers", type=int, default=4, help="of each expert, of 40 (4, which is 1.9 GB)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="turbodiffusion-bench-") as name:
        needed, free = 0.8 * options.layers + 3, shutil.disk_usage(name).free / GB
        if free < needed:
            print(
                f"bench ahead needs {needed:.0f} GB of disk and {name} has {free:.0f}: give another place with --dir."
            )
            return 1
        files = write(Path(name) / "models", options.layers)
        rows = traced(Path(name), files)
    print("| phase | seconds | high expert in memory | low expert in memory |\n|---|---|---|---|")
    for phase, seconds, shares in rows:
        print(f"| {phase} | {seconds:.1f} | " + " | ".join(f"{a:.0%} to {b:.0%}" for a, b in shares) + " |")
    ends = {phase: [end for _, end in shares] for phase, _, shares in rows}
    return 0 if ends["text encoder"][0] > 0.99 and ends["high 2"][1] > 0.99 else 1


def write(models: Path, layers: int) -> list[Path]:
    from td_pack.tests.bench.full_size import write_encoder, write_expert

    for folder in ("diffusion_models", "text_encoders", "vae"):
        (models / folder).mkdir(parents=True)
    write_encoder(models / "text_encoders" / ENCODER, 0, "fp16", TEXT_WIDTH)
    size = EXPERT | {"layers": layers, "in_channels": 16, "text_width": TEXT_WIDTH}
    return [write_expert(models / "diffusion_models" / name, seed, **size) for seed, name in enumerate((HIGH, LOW))]


def traced(folder: Path, files: list[Path]) -> list[tuple]:
    """(phase, seconds, (share at its beginning, at its end) of each file)."""
    from td_pack.tests.support.jobs import empty, loader, node, sampled, t2v_job
    from td_pack.tests.support.server import ComfyServer

    job = t2v_job("ahead", model=loader(HIGH), latent=empty(width=32, height=32, length=5)) | {
        "low": loader(LOW),
        "text": node("TurboDiffusionTextEncode", encoder_name=ENCODER, text=PROMPT, cache=False),
        "few": node("TestFirstTokens", conditioning=["text", 0], count=8),
        "sample": sampled(steps=4, positive=["few", 0], low=["low", 0]),
    }
    arguments = ("--extra-model-paths-config", str(paths_file(folder)))
    with ComfyServer(folder / "server", test_nodes=True, extra_arguments=arguments) as server:
        os.sync()  # or pages that are still to be written stay
        for path in files:
            drop(path)
        trace = Trace(files)
        try:
            server.client.run(job, on_event=trace.on_event, timeout=3600)
        finally:
            trace.stop()
        print("\n".join(line for line in server.log().splitlines() if "read ahead" in line or "Sampled" in line))
    return trace.rows()


class Trace:
    """Samples every 50 ms what of the files is in memory, under the phase that the server's events say it is in."""

    def __init__(self, files: list[Path]):
        self._phase, self._samples, self._done = "start", [], threading.Event()
        self._files = [Resident(path) for path in files]
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def on_event(self, kind: str, data: dict) -> None:
        if kind == "executing":
            self._phase = PHASES.get(data["node"], self._phase if data["node"] else "end")
        elif kind == "progress" and data.get("node") == "sample":
            self._phase = STEPS[int(data["value"]) - 1]

    def _watch(self) -> None:
        while not self._done.is_set():
            self._samples.append((time.perf_counter(), self._phase, [file.share() for file in self._files]))
            self._done.wait(0.05)

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def rows(self) -> list[tuple]:
        rows = []
        for phase in dict.fromkeys(phase for _, phase, _ in self._samples):
            mine = [i for i, sample in enumerate(self._samples) if sample[1] == phase]
            began, ended = self._samples[mine[0]], self._samples[min(mine[-1] + 1, len(self._samples) - 1)]
            rows.append((phase, ended[0] - began[0], list(zip(began[2], ended[2], strict=True))))
        return rows


class Resident:
    """Which share of a file is in the page cache (Linux)."""

    def __init__(self, path: Path):
        with path.open("rb") as file:  # a private mapping that may be written: ctypes gives no address of others
            self._map = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._pages = (ctypes.c_ubyte * -(-len(self._map) // mmap.PAGESIZE))()
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._mincore = ctypes.CDLL(None, use_errno=True).mincore

    def share(self) -> float:
        if self._mincore(ctypes.c_void_p(self._address), ctypes.c_size_t(len(self._map)), self._pages):
            raise OSError(ctypes.get_errno(), "mincore")
        return sum(bytes(self._pages)) / len(self._pages)
