"""A Triton driver whose device is the emulator: launchers, specialization and compilation are Triton's own, up to PTX.

`install(80)` before the first launch of a process in which TRITON_INTERPRET is not set. The PTX that Triton compiles
for the target then runs on the memory of the tensors themselves, whatever device they claim to be on. Triton 3.6.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from triton import knobs
from triton.backends import Backend, backends
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.driver import driver as runtime

from .execute import Machine
from .memory import Allocation, GlobalMemory
from .parse import parse

# Bytes of shared memory a block may have (CUDA C++ Programming Guide, table "Technical Specifications per Compute
# Capability").
SHARED_LIMIT = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
_SCRATCH = (
    2  # pointers to global and profile scratch memory that end every kernel's parameters; no kernel of ours uses them
)
_STRUCT = {
    "i1": "<?",
    "i8": "<b",
    "u8": "<B",
    "i16": "<h",
    "u16": "<H",
    "i32": "<i",
    "u32": "<I",
    "i64": "<q",
    "u64": "<Q",
}


class PtxBackend(CUDABackend):
    """Triton's NVIDIA compiler without its last stage: the binary of a kernel is its PTX, and no ptxas runs."""

    def __init__(self, target):
        super().__init__(target)
        self.binary_ext = "ptx"

    def hash(self) -> str:
        """Distinguishes these kernels in Triton's cache."""
        return f"ptx-{self.target.arch}"

    def add_stages(self, stages, options, language):
        super().add_stages(stages, options, language)
        stages.pop("cubin")


@dataclass
class Launch:
    """What one launch did: the kernel's name, blocks, instructions executed (once a batch of blocks), hazards
    (shared.py)."""

    name: str
    blocks: int
    executed: int
    hazards: frozenset


@dataclass
class Session:
    """What the driver's users set and read. `mutate` changes a kernel's PTX before it runs (name, text) -> text;
    `written` gives the bytes of a tensor that hold values (memory.Allocation), None for all; `launches` is the log."""

    mutate: Callable[[str, str], str] | None = None
    written: Callable[[torch.Tensor, int, int], np.ndarray | None] = lambda tensor, start, size: None
    launches: list[Launch] = field(default_factory=list)


def span(tensor: torch.Tensor) -> tuple[int, int]:
    """Address and bytes from a view's first to its last element: what a kernel that is given the view may touch."""
    if tensor.numel() == 0:
        return tensor.data_ptr(), 0
    steps = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), (steps + 1) * tensor.element_size()


class _Utils:
    def __init__(self, capability: int, session: Session):
        self._capability, self._session = capability, session
        self._machines: dict = {}

    def load_binary(self, name, kernel, shared, device):
        """Parses the PTX; the handle that Triton passes on to the launcher is a function that gives the machine."""
        text = kernel.decode() if isinstance(kernel, bytes) else kernel

        def machine() -> Machine:
            changed = text if self._session.mutate is None else self._session.mutate(name, text)
            if changed not in self._machines:
                self._machines[changed] = Machine(parse(changed), shared)
            return self._machines[changed]

        return None, machine, 0, 0, 1024  # module, function, registers, spills, most threads of a block

    def get_device_properties(self, device):
        return {"max_shared_mem": SHARED_LIMIT[self._capability], "multiprocessor_count": 108, "warpSize": 32}


def _argument(kind: str, value, size: int) -> bytes:
    """A kernel argument as the bytes of its parameter."""
    if isinstance(value, torch.Tensor):
        value = value.data_ptr()
    if kind in ("fp32", "f32"):
        return struct.pack("<f", value)
    if kind in ("fp64", "f64"):
        return struct.pack("<d", value)
    if kind.startswith("*"):
        return struct.pack("<Q", value or 0)
    if kind not in _STRUCT:
        raise NotImplementedError(f"a kernel argument of type {kind}")
    return struct.pack(_STRUCT[kind], value).ljust(size, b"\0")


class _Launcher:
    def __init__(self, session: Session, source, metadata):
        self._session, self._signature, self._name = session, dict(source.signature), metadata.name

    def __call__(self, x, y, z, stream, function, packed, metadata, enter_hook, exit_hook, *arguments):
        given = [(n, k, v) for (n, k), v in zip(self._signature.items(), arguments, strict=True) if k != "constexpr"]
        devices = {value.device for _, _, value in given if isinstance(value, torch.Tensor)}
        if len(devices) > 1:
            raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        machine = function()
        sizes = machine.kernel.parameters[: len(given)]  # Triton's own scratch pointers follow
        values = [_argument(kind, value, size) for (_, kind, value), size in zip(given, sizes, strict=True)]
        allocations = []
        for name, _, value in given:
            if isinstance(value, torch.Tensor):
                start, size = span(value)
                allocations.append(Allocation(start, size, name, self._session.written(value, start, size)))
        memory = GlobalMemory(allocations)
        machine.launch((x, y, z), values + [b"\0" * 8] * _SCRATCH, memory)
        memory.close()
        self._session.launches.append(Launch(self._name, x * y * z, machine.executed, frozenset(machine.hazards)))


class EmulatedDriver(DriverBase):
    """The interface that Triton's runtime asks of a driver, for one device of `capability` (80, 89, ...)."""

    def __init__(self, capability: int, session: Session):
        self._capability, self._session = capability, session
        self.utils = _Utils(capability, session)

    def launcher_cls(self, source, metadata):
        return _Launcher(self._session, source, metadata)

    @classmethod
    def is_active(cls):
        return True

    def get_current_target(self):
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def set_current_device(self, device):
        pass

    def get_device_capability(self, device=0):
        return divmod(self._capability, 10)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty):
        return ty

    def get_benchmarker(self):
        raise NotImplementedError("an emulator has no speed to measure")


def install(capability: int) -> Session:
    """Makes the emulator Triton's device for this process. Returns the session to configure and read."""
    return activate(EmulatedDriver, capability)


def activate(driver: type[EmulatedDriver], capability: int) -> Session:
    """As `install`, with a driver of one's own. Raises RuntimeError where Triton would interpret kernels instead."""
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: kernels would run in Triton's interpreter, not in the emulator")
    if capability not in SHARED_LIMIT:
        raise ValueError(f"no compute capability {capability} among {sorted(SHARED_LIMIT)}")
    session = Session()
    backends["nvidia"] = Backend(compiler=PtxBackend, driver=backends["nvidia"].driver)
    runtime.set_active(driver(capability, session))
    return session
