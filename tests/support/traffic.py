"""Memory traffic of a computation, counted over its operators; works on the meta device too."""

from collections import Counter
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ALLOCATES = ("empty", "new_empty", "empty_like", "empty_strided", "detach", "lift_fresh", "unsafe_view")


class Traffic(TorchDispatchMode):
    """`bytes` and `launches` of each operator, by name: its inputs read once, its results written once. An operator
    that makes a view or an empty tensor has none of either."""

    def __init__(self):
        super().__init__()
        self.bytes, self.launches = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function._schema.name.split("::")[1].strip("_")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        if not _is_view(function) and name not in _ALLOCATES:
            # What an operator changes is read and written.
            changed = [
                value
                for argument, value in zip(function._schema.arguments, args, strict=False)
                if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, torch.Tensor)
            ]
            written = results if not any(result is each for result in results for each in changed) else []
            self.bytes[name] += sum(map(_bytes, [*given, *written, *changed]))
            self.launches[name] += 1
        return out

    def without_convolutions(self) -> tuple[int, int]:
        """Bytes and launches of all other operators."""
        return tuple(sum(counts.values()) - counts["convolution"] for counts in (self.bytes, self.launches))


def _is_view(function) -> bool:
    """Whether a result is a view of an argument."""
    results = function._schema.returns
    return bool(results) and all(each.alias_info is not None and not each.alias_info.is_write for each in results)


def _bytes(x: torch.Tensor) -> int:
    """Of the elements, each counted once however often an expanded view repeats it."""
    count = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        count *= size if stride else 1
    return count * x.element_size()


def decoder_traffic(height: int, width: int, ours: bool) -> Traffic:
    """Of one chunk, two latent frames in the middle of a video of height x width, in bf16 by the Wan 2.1 VAE's decoder
    of the real width, but for its attention: by ComfyUI's code or by ours. Needs the host loaded."""
    from comfy.ldm.wan import vae as wan21
    from td_pack.turbo_core.host.vae_chunks import WanDecoder

    with torch.device("meta"), torch.inference_mode(False), torch.no_grad():
        model = wan21.WanVAE(dim=96, z_dim=16, temperal_downsample=[False, True, True]).bfloat16().eval()
        # It asks for the device's free memory, which meta does not have.
        model.decoder.middle[1].optimized_attention = lambda q, k, v: q
        x = torch.empty(1, 16, 5, height // 8, width // 8, dtype=torch.bfloat16)
        decode: Callable
        if ours:
            decode = WanDecoder(model.decoder, True, torch.channels_last_3d)
        else:
            memory = [None] * wan21.count_cache_layers(model.decoder)

            def decode(part):
                return torch.cat(model.decoder(part, feat_cache=memory, feat_idx=[0]), 2)

        for part in x.split((1, 2, 2), 2):
            with Traffic() as traffic:  # the last one's stays
                decode(part)
    return traffic
