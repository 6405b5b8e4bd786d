"""Turns the devices of the simulated CUDA runtime into ones that compute: aten on the CPU, Triton in the emulator."""

import ctypes
import os

import torch

from ..triton_driver import EmulatedDriver, Session, activate

# Operators of the CUDA key that only look at a tensor's sizes, or transfer, as they are: torch's own work on the device.
_TORCHS_OWN = frozenset(
    """
    _efficientzerotensor _local_scalar_dense _nested_view_from_buffer _pin_memory _reshape_alias as_strided as_strided_
    empty.memory_format empty_strided is_pinned is_set_to record_stream resize_ set_ set_.source_Storage
    set_.source_Storage_storage_offset set_.source_Tensor unfold view view.dtype view_as_complex view_as_real
    """.split()
)
_BY_LIBRARIES = ("cudnn", "miopen", "_scaled_dot_product", "_attention_forward")
# Made of other operators, or of none of the CUDA key: the CPU's kernel as a whole.
_AS_A_WHOLE = ("convolution", "scaled_dot_product_attention")
_REGISTERED_APART = ("copy_", "_fused_sdp_choice")  # install.cpp


def _operators() -> list[str]:
    """Names of aten's operators of the CUDA key for which the CPU has a kernel."""
    found = []
    for qualified in torch._C._dispatch_get_registrations_for_dispatch_key("CUDA"):
        name = qualified.removeprefix("aten::")
        if name == qualified or name in _TORCHS_OWN or name in _REGISTERED_APART or name in _AS_A_WHOLE:
            continue
        if any(part in name for part in _BY_LIBRARIES):
            continue
        if torch._C._dispatch_has_computed_kernel_for_dispatch_key(qualified, "CPU"):
            found.append(name)
    return [*found, *_AS_A_WHOLE]


class DeviceDriver(EmulatedDriver):
    """The emulator as the device that is current, after what is queued on its stream."""

    def launcher_cls(self, source, metadata):
        launch = super().launcher_cls(source, metadata)

        def launch_here(*arguments):
            device = torch.device("cuda", torch.cuda.current_device())
            for value in arguments:
                if isinstance(value, torch.Tensor) and value.device != device:
                    raise ValueError(f"a kernel that runs on {device} was given a tensor of {value.device}")
            torch.cuda.current_stream().synchronize()
            return launch(*arguments)

        return launch_here

    def get_current_device(self):
        return torch.cuda.current_device()

    def get_current_stream(self, device):
        return torch.cuda.current_stream(device).cuda_stream

    def set_current_device(self, device):
        torch.cuda.set_device(device)

    def get_active_torch_device(self):
        return torch.device("cuda", torch.cuda.current_device())


def install() -> Session:
    """For a process with the variables of `Devices.environment`. Returns the session of the emulator."""
    torch.cuda.init()
    names = _operators()
    library = ctypes.CDLL(os.environ["SIMULATED_GPU_OPERATORS"])
    library.simulated_install((ctypes.c_char_p * len(names))(*(name.encode() for name in names)), len(names))
    capability = int(os.environ["SIMULATED_GPU_CAPABILITY"])
    return activate(DeviceDriver, capability)
