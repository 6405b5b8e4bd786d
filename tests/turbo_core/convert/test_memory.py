"""Converting streams: what it takes of memory does not depend on the file's size."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from td_pack.tests.support import checkpoints

TESTS = str(Path(__file__).resolve().parents[2])

MEMORY = """
import sys, threading
sys.path.insert(0, sys.argv[1])
import conftest
from pathlib import Path
from td_pack.turbo_core.convert.convert import Request, convert

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

stop, peak = threading.Event(), 0
def watch():
    global peak
    while not stop.wait(0.002):
        peak = max(peak, anonymous())

folder = Path(sys.argv[2])
convert(Request(folder / "small.pth", folder / "small.safetensors", sys.argv[3]))  # what the first use of torch costs
before = anonymous()
thread = threading.Thread(target=watch, daemon=True)
thread.start()
convert(Request(folder / "large.pth", folder / "large.safetensors", sys.argv[3]))
stop.set()
thread.join()
print(peak - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
def test_memory_does_not_grow_with_the_file(tmp_path):
    checkpoints.write_pth(tmp_path / "small.pth", checkpoints.upstream_state_dict(1, layers=1))
    tile = checkpoints.draw(1, "tile", (1 << 16,)).bfloat16() / 64
    shapes = checkpoints.shapes(dim=1536, ffn_dim=8960, layers=6, in_channels=16, sla=True)
    large = {}
    for key, shape in shapes.items():
        size = torch.Size(shape).numel()
        large[key] = tile.repeat(-(-size // len(tile)))[:size].view(shape)
    path = checkpoints.write_pth(tmp_path / "large.pth", large)
    assert path.stat().st_size > 550e6
    del large
    command = [sys.executable, "-c", MEMORY, TESTS, str(tmp_path), "int8_block"]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    assert 10e6 < grown < 200e6  # less than the first would mean that nothing was measured
    path.unlink()
