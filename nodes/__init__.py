"""The pack's nodes: each reads its inputs, calls turbo_core and returns."""

from comfy_api.latest import ComfyExtension, io

from . import links, metadata, replacements
from .attention import TurboDiffusionSLA
from .camera import TurboDiffusionCameraCondition, TurboDiffusionCameraEmbed, TurboDiffusionCameraPath
from .compare import TurboDiffusionCompare
from .convert import TurboDiffusionConvert
from .decode import TurboDiffusionVAEDecode, TurboDiffusionVAEDecodeVideo
from .image import TurboDiffusionPrepareImage
from .join import TurboDiffusionJoinVideo
from .legacy import (
    TurboDiffusionLegacyI2V,
    TurboDiffusionLegacyLoader,
    TurboDiffusionLegacySaveVideo,
    TurboDiffusionLegacyT2V,
)
from .loader import TurboDiffusionLoader
from .lora import TurboDiffusionLoRA
from .parallel import TurboDiffusionParallel
from .sampling import TurboDiffusionGuider, TurboDiffusionSample, TurboDiffusionSampler, TurboDiffusionSigmas
from .status import TurboDiffusionStatus
from .text import TurboDiffusionTextEncode


class TurboDiffusionExtension(ComfyExtension):
    """The nodes of the pack, and what it registers with ComfyUI when it is loaded."""

    async def on_load(self) -> None:
        metadata.register()
        await replacements.register()
        links.register(await self.get_node_list())

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            TurboDiffusionLoader,
            TurboDiffusionSLA,
            TurboDiffusionLoRA,
            TurboDiffusionParallel,
            TurboDiffusionSigmas,
            TurboDiffusionSampler,
            TurboDiffusionGuider,
            TurboDiffusionSample,
            TurboDiffusionVAEDecode,
            TurboDiffusionVAEDecodeVideo,
            TurboDiffusionJoinVideo,
            TurboDiffusionPrepareImage,
            TurboDiffusionTextEncode,
            TurboDiffusionCompare,
            TurboDiffusionConvert,
            TurboDiffusionStatus,
            TurboDiffusionLegacyLoader,
            TurboDiffusionLegacyI2V,
            TurboDiffusionLegacyT2V,
            TurboDiffusionLegacySaveVideo,
            TurboDiffusionCameraPath,
            TurboDiffusionCameraEmbed,
            TurboDiffusionCameraCondition,
        ]
