"""TurboDiffusion for ComfyUI: few-step, sparse-linear-attention, int8 Wan video models as native MODELs."""

import logging

WEB_DIRECTORY = "./nodes/web"


async def comfy_entrypoint():
    """What ComfyUI calls after importing the pack; the nodes are imported here so that the import stays free."""
    from .turbo_core.environment import check_comfyui, does_not_fit

    check_comfyui()  # outside the try: to a person who has to update, a traceback says nothing more
    try:
        from .nodes import TurboDiffusionExtension
    except Exception as error:
        # ComfyUI logs only the message of an entry point's error; the traceback is what a bug report needs.
        logging.getLogger("turbodiffusion").exception("TurboDiffusion could not be imported")
        if isinstance(error, (ImportError, AttributeError)):
            raise ImportError(does_not_fit(error)) from error
        raise
    return TurboDiffusionExtension()
