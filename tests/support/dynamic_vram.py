"""ComfyUI's dynamic VRAM on a CPU: an accelerator of the kind that is the default on NVIDIA, without one.

Real, run unchanged: ModelPatcherDynamic, comfy.ops (cast_modules_with_vbar, resolve_cast_module_with_vbar,
cast_bias_weight and its counterpart), the prefetch queues, memory_management, load_models_gpu, the safetensors reader
over a mapped file, the module functions of comfy_aimdo.model_vbar, the samplers; and the pack.

Emulated, because the hardware is missing:
- `ACCELERATOR`, the device that models are loaded to, is `cpu:0`. To torch it is the CPU's memory, to comparisons of
  devices it is not
  `cpu`; `is_device_cpu` denies it, as every tensor computed on it has the device `cpu`.
- comfy_aimdo's native library: ModelVBAR (here one buffer, whose allocations are granted or refused by a `Policy` and
  filled with 0xFF,
  which is NaN in every float type, whenever they are evicted), aimdo_to_tensor, ModelMMAP (Python's mmap), HostBuffer
  (no pinned memory:
  ComfyUI runs as with --disable-pinned-memory).
- `cast_bias_weight` and `make_prefetch_queue` get ACCELERATOR where they would get the device of a tensor.
- The number of transfer streams is 1, without which ComfyUI does not prefetch; on this device there is no stream, so
  transfers are
  synchronous.

Not to be seen here: missing synchronisation, pinned memory, reads from the file straight to the device, eviction in
pages of 32 MB (here by allocation), CUDA graphs.
"""

import ctypes
import mmap
import random
from collections.abc import Callable

import comfy.memory_management
import comfy.model_management
import comfy.model_patcher
import comfy.model_prefetch
import comfy.ops
import comfy_aimdo.host_buffer
import comfy_aimdo.model_mmap
import comfy_aimdo.model_vbar
import comfy_aimdo.torch
import torch
from comfy.cli_args import args

ACCELERATOR = torch.device("cpu", 0)
LOST = 0xFF  # in memory that was evicted or never filled

# (number of the allocation, whether it is resident) -> whether it is granted, and whether it is evicted before that
Policy = Callable[[int, bool], tuple[bool, bool]]


def evicting(seed: int) -> Policy:
    """Everything fits, and two of five times a weight has been evicted since its last use."""
    dice = random.Random(seed)
    return lambda number, resident: (True, resident and dice.random() < 0.4)


POLICIES: dict[str, Callable[[], Policy]] = {
    "all resident": lambda: lambda number, resident: (True, False),
    "nothing fits": lambda: lambda number, resident: (False, False),
    "half fits": lambda: lambda number, resident: (number % 2 == 0, False),
    "evicted at random": lambda: evicting(5),
}


class DynamicVRAM:
    """The emulated accelerator. What happened on it: `faults` by kind, and the layers by ComfyUI's names whose weights
    were `prefetched`, or fetched `alone` when they ran."""

    def __init__(self, policy: Policy):
        self.policy = policy
        self.vbars: list[_VBAR] = []
        self.faults = {"refused": 0, "filled": 0, "resident": 0, "evicted": 0}
        self.prefetched: set[str] = set()
        self.alone: set[str] = set()

    @property
    def pins(self) -> int:
        """Allocations that are still in use."""
        return sum(count > 0 for vbar in self.vbars for count in vbar.pins.values())

    def install(self, monkeypatch) -> None:
        """Until `monkeypatch` is undone models are loaded to this accelerator."""
        management = comfy.model_management
        monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
        monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcherDynamic)
        monkeypatch.setattr(management, "get_torch_device", lambda: ACCELERATOR)
        monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
        monkeypatch.setattr(management, "NUM_STREAMS", 1)
        monkeypatch.setattr(args, "disable_pinned_memory", True)
        monkeypatch.setattr(comfy_aimdo.model_vbar, "ModelVBAR", lambda size, device, *_: _VBAR(self, size))
        monkeypatch.setattr(comfy_aimdo.torch, "aimdo_to_tensor", lambda alloc, device: alloc[0].bytes_of(alloc))
        monkeypatch.setattr(comfy_aimdo.model_mmap, "ModelMMAP", _MappedFile)
        monkeypatch.setattr(comfy_aimdo.host_buffer, "HostBuffer", _NoHostBuffer)

        make_queue, cast = comfy.model_prefetch.make_prefetch_queue, comfy.ops.cast_bias_weight

        def make_prefetch_queue(queue, device, transformer_options):
            return make_queue(queue, ACCELERATOR, transformer_options)

        def cast_bias_weight(s, input=None, dtype=None, device=None, bias_dtype=None, **kwargs):
            if getattr(s, "_v", None) is not None:
                (self.prefetched if getattr(s, "_prefetch", None) is not None else self.alone).add(s.seed_key)
            return cast(s, input, dtype, ACCELERATOR, bias_dtype, **kwargs)

        monkeypatch.setattr(comfy.model_prefetch, "make_prefetch_queue", make_prefetch_queue)
        monkeypatch.setattr(comfy.ops, "cast_bias_weight", cast_bias_weight)


class _VBAR:
    """A model's address range on the accelerator, in the interface of comfy_aimdo.model_vbar.ModelVBAR."""

    def __init__(self, accelerator: DynamicVRAM, size: int):
        self.accelerator = accelerator
        self.memory = torch.empty(int(size), dtype=torch.uint8)
        self.used = 0
        self.allocations: dict[int, int] = {}  # bytes by address
        self.filled: dict[int, ctypes.Array] = {}  # the signature of the content by address, of what is resident
        self.pins: dict[int, int] = {}
        accelerator.vbars.append(self)

    def alloc(self, size: int) -> tuple["_VBAR", int, int]:
        start = -(-self.used // 512) * 512
        if start + size > len(self.memory):
            raise MemoryError("VBAR OOM")
        self.used = start + size
        address = self.memory.data_ptr() + start
        self.allocations[address] = size
        return self, address, size

    def bytes_of(self, alloc: tuple["_VBAR", int, int]) -> torch.Tensor:
        _, address, size = alloc
        start = address - self.memory.data_ptr()
        return self.memory[start : start + size]

    def fault(self, address: int, size: int) -> ctypes.Array | None:
        """Pins an allocation; returns what changes when its content is lost, or None if there is no room."""
        faults, idle = self.accelerator.faults, self.pins.get(address, 0) == 0
        number = list(self.allocations).index(address)
        granted, evicted = self.accelerator.policy(number, address in self.filled and idle)
        if not granted:
            faults["refused"] += 1
            return None
        if evicted:
            self.evict(address)
        if address in self.filled:
            faults["resident"] += 1
        else:
            faults["filled"] += 1
            self.bytes_of((self, address, size)).fill_(LOST)
            self.filled[address] = (ctypes.c_uint32 * 1)(faults["filled"])
        self.pins[address] = self.pins.get(address, 0) + 1
        return self.filled[address]

    def unpin(self, address: int, size: int) -> None:
        if self.pins.get(address, 0) == 0:
            raise RuntimeError("VBAR unpin failed")
        self.pins[address] -= 1

    def evict(self, address: int) -> int:
        size = self.allocations[address]
        self.accelerator.faults["evicted"] += 1
        self.bytes_of((self, address, size)).fill_(LOST)
        del self.filled[address]
        return size

    def free_memory(self, size: int) -> int:
        freed = 0
        for address in [address for address in self.filled if self.pins.get(address, 0) == 0]:
            if freed < size:
                freed += self.evict(address)
        return freed

    def loaded_size(self) -> int:
        return sum(self.allocations[address] for address in self.filled)

    def prioritize(self, *_) -> None:
        pass


class _MappedFile:
    """A file's bytes in memory, changed by nobody's writes to the file."""

    def __init__(self, path: str):
        self.file = open(path, "rb")
        self.map = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_COPY)
        self.view = (ctypes.c_ubyte * len(self.map)).from_buffer(self.map)

    def get(self) -> int:
        return ctypes.addressof(self.view)

    def get_file_handle(self) -> int:
        return self.file.fileno()

    def bounce(self) -> bool:
        return True


class _NoHostBuffer:
    """A pinned buffer that nothing is put into."""

    def __init__(self, *_):
        self.size = 0
