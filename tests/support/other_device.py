"""A device that this machine lacks, "mps" or "xpu": tensors on it are fake, each with a CPU tensor that has its values.

`OtherDevice(kind)` is a context in which code may put tensors on the device as if it were there. Every operator that
touches one runs twice: on fake tensors, which know their device, and on the values. So a mix of devices fails as it
would there (FakeTensorMode refuses it), what comes back to the host has the values that a CPU computes, and DeviceError
names the operator whose result has a dtype that the device lacks. Operators among CPU tensors alone run as they are.

What fake tensors cannot do, and what is done instead:
- Reads to the host (`item`, `tolist`, `equal`, `bool`): a fake tensor has no values, so they read the value beside it.
- torch's C++ code asks for the driver of a device, which torch here is built without, before it indexes or copies. C++
  is told that the
  tensor is on the CPU. Therefore `to`, `cpu` and `type_as` become plain copies here, `scaled_dot_product_attention`
  chooses the CPU's kernel instead of the device's own, and a device that C++ passes on is the tensor's.
- `copy_`, also by `x[...] = y`, may cross devices and runs on the values alone.
- Operators of `turbodiffusion::` run as they are: FakeTensorMode would run only their shape functions.
- `torch.tensor(..., device=...)` is made on the CPU and moved.
- A random generator is one of the CPU: the test replaces `torch.Generator`, which asks for the driver too.
Not found by this: values that a device computes otherwise than a CPU, operators that its backend does not implement,
and quantized weights that stay on the device when they are offloaded."""

from contextlib import ExitStack
from unittest import mock

import torch
from torch._library.custom_ops import OPDEFS
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

_COMPLEX = (torch.complex32, torch.complex64, torch.complex128)
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz)
# MPS has neither float64 nor 8-bit floats, Intel Arc no unit for float64; complex numbers work for few operators on
# either.
LACKS = {"mps": (torch.float64, *_COMPLEX, *_FLOAT8), "xpu": (torch.float64, *_COMPLEX)}

_aten = torch.ops.aten
_CPU = torch.device("cpu")
_READS = {_aten.item.default, _aten._local_scalar_dense.default, _aten.equal.default, _aten.is_nonzero.default}
_COPIES = {torch.Tensor.to, torch.Tensor.type_as}
_PLAIN = {torch.Tensor, torch.nn.Parameter}


class DeviceError(AssertionError):
    """Something was put on the device that it lacks."""


class OtherDevice(ExitStack):
    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.device = kind, torch.device(kind, 0)
        self.operators: set[str] = set()  # names of those that ran on the device
        self.fake_mode = FakeTensorMode()
        self.device_given = False  # by Python, in the call that runs now

    def __enter__(self) -> "OtherDevice":
        super().__enter__()
        # Before its first tensor on a device torch has the device's module start the driver.
        self.enter_context(mock.patch.object(getattr(torch, self.kind), "_lazy_init", lambda: None, create=True))
        self.enter_context(_Functions(self))
        self.enter_context(_Operators(self))
        return self

    def is_device(self, leaf: object) -> bool:
        return leaf == self.kind if isinstance(leaf, str) else isinstance(leaf, torch.device) and leaf.type == self.kind

    def run(self, func, args: tuple, kwargs: dict):
        """One operator: on the values, and on fake tensors."""
        self.operators.add(str(func))
        on_cpu = tree_map(lambda leaf: _CPU if self.is_device(leaf) else leaf, kwargs)
        values = func(*tree_map_only(FakeTensor, _value, args), **tree_map_only(FakeTensor, _value, on_cpu))
        if func is _aten.copy_.default:
            return args[0]
        args, kwargs = tree_map_only(torch.Tensor, self._fake, (args, kwargs))
        with self.fake_mode:
            fakes = func(*args, **kwargs)
        # Its weak references would keep modules from being moved.
        self.fake_mode.fake_tensor_converter.meta_converter.tensor_memo.clear()
        return tree_map(lambda fake, value: self._pair(func, fake, value), fakes, values)

    def _fake(self, tensor: torch.Tensor) -> FakeTensor:
        """A tensor of the CPU as a fake one; not by FakeTensorMode's own converter, whose weak references keep modules
        from moving."""
        if isinstance(tensor, FakeTensor):
            return tensor
        with self.fake_mode:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)

    def _pair(self, func, fake, value):
        """The result of an operator: a fake tensor with its values if it is on the device, else the values."""
        if not isinstance(fake, FakeTensor) or fake.device.type != self.kind:
            return value
        if fake.dtype in LACKS[self.kind]:
            raise DeviceError(f"{func} made {fake.dtype} {list(fake.shape)} on {self.kind}")
        fake.value = value.to(fake.dtype)  # a CPU keeps the statistics of a norm in another one
        return fake


def _value(fake: FakeTensor) -> torch.Tensor:
    return fake.value


class _Operators(TorchDispatchMode):
    def __init__(self, other: OtherDevice):
        super().__init__()
        self._other = other

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, other = kwargs or {}, self._other
        if func is torch.ops.prim.device.default:
            return _CPU  # to C++; Python reads FakeTensor.device
        if not all(issubclass(each, FakeTensor) or each in _PLAIN for each in types):
            return NotImplemented  # a wrapper as QuantizedTensor, which calls operators on what it holds
        if not any(isinstance(leaf, FakeTensor) or other.is_device(leaf) for leaf in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        if func.namespace == "turbodiffusion":
            with _Functions(other), self:
                return OPDEFS[func._schema.name]._init_fn(*args, **kwargs)
        if func in _READS:
            return func(*tree_map_only(FakeTensor, _value, args))
        if kwargs.get("device") == _CPU and not other.device_given and isinstance(args[0], FakeTensor):
            kwargs |= {"device": args[0].device}  # C++ gives the device of args[0] as it was told it
        with self:  # an operator made of others, which in inference mode comes here as a whole
            result = func.decompose(*args, **kwargs)
        return other.run(func, args, kwargs) if result is NotImplemented else result


class _Functions(TorchFunctionMode):
    """Calls of Python that would not reach the dispatcher, or not with the device."""

    def __init__(self, other: OtherDevice):
        super().__init__()
        self._other = other

    def __torch_function__(self, func, types, args=(), kwargs=None):
        other = self._other
        if func is torch.device:
            return func(*args, **kwargs or {})
        # Without an index torch would ask the driver for the current one.
        args, kwargs = tree_map(lambda leaf: other.device if other.is_device(leaf) else leaf, (args, kwargs or {}))
        if func is torch.Tensor.tolist:
            return func(getattr(args[0], "value", args[0]))
        if func is torch.tensor and other.is_device(kwargs.get("device")):
            return torch.tensor(*args, **kwargs | {"device": _CPU}).to(other.device)
        if func is torch.Tensor.cpu:
            func, args = torch.Tensor.to, (args[0], _CPU)
        other.device_given = "device" in kwargs or func in _COPIES
        try:
            return (_to if func in _COPIES else func)(*args, **kwargs)
        finally:
            other.device_given = False


def _to(x: torch.Tensor, *args, copy: bool = False, other: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
    """`x.to(...)`."""
    if args and isinstance(args[0], torch.Tensor):
        other, *args = args
    if other is not None:
        kwargs |= {"device": other.device, "dtype": other.dtype}
    device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    device, dtype = device or x.device, dtype or x.dtype
    if (x.device, x.dtype) == (device, dtype) and not copy:
        return x
    return _aten._to_copy.default(x, device=device, dtype=dtype, non_blocking=non_blocking, memory_format=memory_format)
