"""What the demo makes of its videos."""

import av
import numpy as np
from PIL import Image
from td_pack.tests.support import demo


def write_video(path, gray_levels, size):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for level in gray_levels:
            picture = np.full((size[1], size[0], 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_comparison_shows_three_frames_above_the_plot(tmp_path):
    video = write_video(tmp_path / "compare.mp4", [0, 60, 120, 180, 240], (64, 32))
    sheet = Image.open(demo.comparison(video, Image.new("RGB", (192, 50), "red"), tmp_path / "compare.png"))
    assert sheet.size == (192, 32 + 50)
    frames = np.asarray(sheet)[16, [32, 96, 160], 0]
    np.testing.assert_allclose(frames, [0, 120, 240], atol=6)
    assert tuple(np.asarray(sheet)[60, 5]) == (255, 0, 0)


def test_the_contact_sheet_has_a_row_of_frames_for_each_video(tmp_path):
    long = write_video(tmp_path / "long.mp4", range(0, 240, 20), (64, 64))
    short = write_video(tmp_path / "short.mp4", [200, 100], (128, 64))
    sheet = Image.open(demo.contact_sheet([long, short], tmp_path / "sheet.png"))
    assert sheet.size == (6 * 160, 2 * 160)
    middle = [np.asarray(sheet)[80 + 160 * row, 80 + 160 * column].mean() for row in (0, 1) for column in range(6)]
    np.testing.assert_allclose(middle[:6], [0, 40, 80, 140, 180, 220], atol=6)
    np.testing.assert_allclose(middle[6:10], [200, 200, 100, 100], atol=6)
    assert middle[10:] == [0, 0]
