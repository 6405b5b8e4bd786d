"""What is in an mp4."""

from fractions import Fraction
from pathlib import Path

import av


def packets(video: Path) -> list[tuple[int, bytes]]:
    """Time and bytes of every packet of the video stream: equal lists are the same video, bit for bit."""
    with av.open(str(video)) as container:
        return [(packet.pts, bytes(packet)) for packet in container.demux(video=0) if packet.size]


def rate_and_metadata(video: Path) -> tuple[Fraction, dict[str, str]]:
    with av.open(str(video)) as container:
        return container.streams.video[0].average_rate, dict(container.metadata)
