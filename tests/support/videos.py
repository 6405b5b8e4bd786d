"""Reads what is in a video file."""

import resource
from contextlib import contextmanager
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import torch

# The properties of a stream that a player reads before it decodes.
TAGS = ("pix_fmt", "profile", "color_primaries", "color_trc", "colorspace", "color_range", "width", "height")


def _rewound(video: Path | str | BytesIO) -> str | BytesIO:
    if not isinstance(video, BytesIO):
        return str(video)
    video.seek(0)
    return video


def packets(video: Path | str | BytesIO) -> list[tuple[int, bytes]]:
    """Time and bytes of every packet of the video stream: equal lists are the same video, bit for bit."""
    with av.open(_rewound(video)) as container:
        return [(packet.pts, bytes(packet)) for packet in container.demux(video=0) if packet.size]


def rate_and_metadata(video: Path | str | BytesIO) -> tuple[Fraction, dict[str, str]]:
    with av.open(_rewound(video)) as container:
        return container.streams.video[0].average_rate, dict(container.metadata)


def tags(video: Path | str | BytesIO) -> dict:
    """Container, codec, colors and first bytes of a file."""
    with av.open(_rewound(video)) as container:
        stream = container.streams.video[0]
        about = {name: getattr(stream.codec_context, name) for name in TAGS}
        streams = [stream.type for stream in container.streams]
        about |= {"container": container.format.name, "codec": stream.codec.name, "streams": streams}
    about["brand"] = (video.getvalue() if isinstance(video, BytesIO) else Path(video).read_bytes())[:12]
    return about


def pixels(video: Path | str | BytesIO) -> list[tuple[float, bytes]]:
    """Time and samples of every decoded frame, in the file's own pixel format."""
    with av.open(_rewound(video)) as container:
        return [(frame.time, frame.to_ndarray().tobytes()) for frame in container.decode(video=0)]


@contextmanager
def largest_file(size: int):
    """Limits the size of files in this process, in bytes, to act as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def noise(count: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=generator)
