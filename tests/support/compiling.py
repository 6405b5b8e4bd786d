"""Compiles a network's kernels for a GPU that is not here, through the launchers: in a process of its own, since
Triton's device is one of the process."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


@contextmanager
def as_if_on(capability: int) -> Iterator[torch.device]:
    """Within the block torch and Triton answer as on a machine with an NVIDIA GPU of this compute capability, of which
    nothing can be run. Gives the device."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase
    from triton.runtime.driver import driver

    class Driver(DriverBase):
        @classmethod
        def is_active(cls):
            return True

        def get_current_target(self):
            return GPUTarget("cuda", capability, 32)

        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

        def get_active_torch_device(self):
            return torch.device("cpu")

        def map_python_to_cpp_type(self, ty):
            return ty

        def get_benchmarker(self):
            raise NotImplementedError

    driver.set_active(Driver())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: divmod(capability, 10))
        yield torch.device("cuda", 0)


class Compilations:
    """Lists what Triton compiles, what it reads from its cache on disk instead, and the threads that do either."""

    def __init__(self):
        from triton import knobs

        self.compiled, self.read, self.threads, self._all = [], [], set(), []
        self.seconds = {}  # of each kernel that was compiled, by its name and number
        self.in_python = 0.0  # seconds of these that hold Python's lock
        knobs.compilation.listener = self._listen

    def all(self) -> list[str]:
        """The names of both, in their order."""
        return list(self._all)

    def _listen(self, src, metadata, metadata_group, times, cache_hit):
        self._all.append(metadata["name"])
        if not cache_hit:
            self.seconds[metadata["name"], len(self._all)] = times.total / 1e6
            self.in_python += times.ir_initialization / 1e6
        self.threads.add(threading.current_thread().name)
        (self.read if cache_hit else self.compiled).append(metadata["name"])


def kernels_of(device: torch.device, network) -> list:
    """The calls that compile a network's kernels and those of their self-tests."""
    from ...kernels.ahead import _TRITON, listed
    from ...turbo_core.kernel_calls import network_calls

    return listed(_TRITON, device, network_calls(network, device))


def compile_in_order(calls: list) -> float:
    """Seconds to compile what these calls launch, one after the other."""
    from ...kernels.launch import chip_at, compiling_for

    began = time.perf_counter()
    with torch.inference_mode(), compiling_for(chip_at(torch.device("cuda", 0))):
        for call in calls:
            call()
    return time.perf_counter() - began
