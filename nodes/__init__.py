"""The pack's nodes: each reads its inputs, calls turbo_core and returns."""

from comfy_api.latest import ComfyExtension, io

from .attention import TurboDiffusionSLA
from .convert import TurboDiffusionConvert
from .decode import TurboDiffusionVAEDecode, TurboDiffusionVAEDecodeVideo
from .image import TurboDiffusionPrepareImage
from .loader import TurboDiffusionLoader
from .lora import TurboDiffusionLoRA
from .sampling import TurboDiffusionGuider, TurboDiffusionSample, TurboDiffusionSampler, TurboDiffusionSigmas
from .status import TurboDiffusionStatus


class TurboDiffusionExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            TurboDiffusionLoader,
            TurboDiffusionSLA,
            TurboDiffusionLoRA,
            TurboDiffusionSigmas,
            TurboDiffusionSampler,
            TurboDiffusionGuider,
            TurboDiffusionSample,
            TurboDiffusionVAEDecode,
            TurboDiffusionVAEDecodeVideo,
            TurboDiffusionPrepareImage,
            TurboDiffusionConvert,
            TurboDiffusionStatus,
        ]
