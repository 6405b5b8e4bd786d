"""Converting streams: what it takes of memory does not depend on the file's size."""

import sys

import pytest
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.fresh import fresh

MEMORY = """
load_pack()
from pathlib import Path
from td_pack.turbo_core.convert.convert import Request, convert

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

for name in ("small", "large"):  # the first use of torch takes memory too
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is in memory now
    before = peak()
    convert(Request(Path(f"{name}.pth"), Path(f"{name}.safetensors"), "int8_block"))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
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
    grown = int(fresh(MEMORY, tmp_path).split()[-1])
    assert 10e6 < grown < 200e6  # less would mean that nothing was measured
    path.unlink()
