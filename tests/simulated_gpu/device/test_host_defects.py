"""The simulated device is tested by defects of host code: a tensor that is not moved, a weight used where it lies, the
wrong expert. Each is put into a copy of the pack, and must end a job in an error or change its result. The defects that
cannot be noticed are listed with the reason."""

import functools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from td_pack.tests.support.server import ROOT

from .run import require_device, variables
from .servers import KEPT_FREE
from .settings import Devices

COPIED = ("cli.py", "dev.py", "__init__.py", "turbo_core", "kernels", "nodes", "tests/support", "tests/simulated_gpu")


class Defect(NamedTuple):
    """In `file`, `new` stands for `old`; `job` of host_jobs.py runs it. `unnoticed`: why nothing shows."""

    what: str
    file: str
    old: str
    new: str
    job: str
    unnoticed: str = ""


DEFECTS = (
    Defect("latent not moved", "turbo_core/sampling/rcm.py", "given = rounded.to(x.device)", "given = rounded", "t2v"),
    Defect(
        "proj_l used where it lies",
        "turbo_core/host/self_attention.py",
        "with fetched(projection, q) as (weight, bias):",
        "for weight, bias in [(projection.weight, projection.bias)]:",
        "t2v",
    ),
    Defect(
        "norm used where it lies",
        "turbo_core/host/fused.py",
        "with fetched(norm, x) as (weight, _):",
        "for weight in [norm.weight]:",
        "t2v",
    ),
    Defect(
        "int8 weight taken as resident",
        "turbo_core/host/quantized_linear.py",
        "and self.weight.device == device",
        "and True",
        "int8_lora",
    ),
    Defect(
        "LoRA fetched while its weight is",
        "turbo_core/host/self_attention.py",
        "for change in changes:\n                weight = weight + change",
        "for path in side_paths(projection):\n                weight = weight + path.change(q)",
        "int8_lora",
    ),
    Defect(
        "latent of the decoder not moved",
        "turbo_core/host/decode.py",
        "latent.to(device=self.vae.device, dtype=self.vae.vae_dtype)",
        "latent.to(dtype=self.vae.vae_dtype)",
        "decode",
    ),
    Defect(
        "the wrong expert",
        "turbo_core/host/guider.py",
        "return self._low if self._is_low(sigma) else self._high",
        "return self._high",
        "experts",
    ),
    Defect(
        "second expert not loaded",
        "turbo_core/host/second_expert.py",
        "self._loaded = _load(",
        "self._loaded = (lambda *_: [])(",
        "experts",
        "layers fetch what is not on the device themselves: it is slower, not wrong",
    ),
    Defect(
        "modulation used where it lies",
        "turbo_core/host/model.py",
        "comfy.model_management.cast_to(self.modulation, dtype=torch.float32, device=x.device)",
        "self.modulation.float()",
        "t2v",
    ),
    Defect(
        "fetched weight not released",
        "turbo_core/host/features.py",
        "comfy.ops.uncast_bias_weight(self.layer, *self.fetched)",
        "pass",
        "t2v",
        "kernels run when they are launched, so a copy never overtakes one that reads what it overwrites",
    ),
    Defect(
        "decoded frames not moved",
        "turbo_core/host/decode.py",
        "pixels = pixels.to(self._out.device)",
        "pass",
        "decode",
        "Tensor.copy_, which writes them, crosses devices itself",
    ),
)


def run_jobs(root: Path, *jobs: str) -> dict[str, str]:
    """The digest of each job that the pack in `root` finished. No weight is resident, but for the decoder's: others
    follow the tensor that they meet."""
    devices = Devices() if jobs == ("decode",) else Devices(memory=KEPT_FREE)
    folder = root / "tests" / "simulated_gpu" / "device"
    command = [sys.executable, str(folder / "launch.py"), str(folder / "host_jobs.py"), *jobs]
    done = subprocess.run(command, env=variables(devices), capture_output=True, text=True, cwd=root)
    print(done.stderr[-3000:])
    lines = (line.split() for line in done.stdout.splitlines())
    return {words[0]: words[1] for words in lines if len(words) == 2 and words[0] in jobs}


@pytest.fixture(scope="module")
def sound() -> Callable[[str], str]:
    """The digest of a job without a defect, which runs once."""
    require_device()
    return functools.cache(lambda job: run_jobs(ROOT, job)[job])


PLAIN = ("LoRA fetched while its weight is", "the wrong expert")  # in a plain run


def _parameter(defect: Defect):
    marks = () if defect.what in PLAIN else (pytest.mark.thorough,)
    return pytest.param(defect, id=defect.what.replace(" ", "-"), marks=marks)


@pytest.mark.parametrize("defect", [_parameter(defect) for defect in DEFECTS])
def test_a_defect_of_host_code_is_noticed(defect, sound, tmp_path):
    for name in COPIED:
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    file = tmp_path / defect.file
    text = file.read_text(encoding="utf-8")
    assert defect.old in text
    file.write_text(text.replace(defect.old, defect.new), encoding="utf-8")
    unchanged = run_jobs(tmp_path, defect.job).get(defect.job) == sound(defect.job)
    assert unchanged == bool(defect.unnoticed), defect
