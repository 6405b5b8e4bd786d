"""TurboDiffusion for ComfyUI: few-step, sparse-linear-attention, int8 Wan video models as native MODELs."""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import TurboDiffusionExtension

WEB_DIRECTORY = "./nodes/web"


async def comfy_entrypoint() -> "TurboDiffusionExtension":
    """The extension, for ComfyUI, which calls this after it has imported the pack.

    The nodes are imported here, so that importing the pack imports neither torch nor ComfyUI. Raises ImportError, with
    a sentence for the user, if this ComfyUI is too old or lacks something that the nodes import.
    """
    from .turbo_core.environment import check_comfyui, does_not_fit

    check_comfyui()  # outside the try: a user who has to update needs no traceback
    try:
        from .nodes import TurboDiffusionExtension
    except Exception as error:
        # ComfyUI logs only the message of this error; a bug report needs the traceback.
        logging.getLogger("turbodiffusion").exception("TurboDiffusion could not be imported")
        if isinstance(error, (ImportError, AttributeError)):
            raise ImportError(does_not_fit(error)) from error
        raise
    return TurboDiffusionExtension()
