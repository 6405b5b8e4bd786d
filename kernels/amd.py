"""Which AMD GPUs the Triton kernels are tried on, and why not others. Chosen by compiling the kernels for each
architecture (the sweep in tests/kernels/test_aot.py): none was available to run them on. On the user's GPU the
self-test decides.
"""

import torch

# gfx9: CDNA and older, compiled for gfx942. RDNA 3, 3.5 and 4 by their instruction sets, compiled for gfx1100, gfx1151,
# gfx1201.
_RDNA = ("gfx110", "gfx115", "gfx120")
_OLDEST_TRITON = (3, 6, 0)  # on RDNA: the oldest that was tried


def _is_rdna(architecture: str) -> bool:
    return architecture.startswith(_RDNA)


def unsupported(architecture: str) -> str | None:
    """Why the kernels do not run on an architecture ("gfx1030"), or None if they can be tried."""
    if architecture.startswith("gfx9") or _is_rdna(architecture):
        return None
    if architecture.startswith("gfx10"):
        return f"{architecture} has no matrix instructions (on AMD, RDNA 3 or newer and the gfx9 chips have)"
    return f"its kernels are made for AMD's RDNA 3, RDNA 4 and gfx9 chips, and this is {architecture}"


def too_old(architecture: str, triton: tuple[int, ...]) -> str | None:
    """Why this Triton is not tried on an architecture, or None if it is."""
    if not _is_rdna(architecture) or triton >= _OLDEST_TRITON:
        return None
    needed, found = (".".join(map(str, version)) for version in (_OLDEST_TRITON, triton))
    return f"on {architecture} its kernels need Triton {needed} or newer, and this is {found}"


def architecture_of(device: torch.device) -> str:
    """The instruction set of an AMD GPU, for example "gfx1100"."""
    return torch.cuda.get_device_properties(device).gcnArchName
