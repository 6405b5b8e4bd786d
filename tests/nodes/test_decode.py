"""The decode nodes: the video equals ComfyUI's own, and failures through a live server leave it working."""

import inspect
import json
from fractions import Fraction
from functools import partial
from io import BytesIO

import pytest
import torch
from comfy_api.latest import InputImpl, Types
from td_pack.nodes.decode import DecodedVideo, encode_mp4
from td_pack.tests.support import checkpoints, graph, vaes
from td_pack.tests.support.allocations import PeakBytes
from td_pack.tests.support.client import ExecutionFailed
from td_pack.tests.support.jobs import node
from td_pack.tests.support.videos import packets, pixels, rate_and_metadata, tags
from td_pack.turbo_core.host.decode import decode_images, stock_decode
from td_pack.turbo_core.host.decode_video import decode_video

RATE = Fraction(16)
ENCODE = partial(encode_mp4, frame_rate=RATE)
AUTO = {"format": "auto", "codec": "auto"}


@pytest.fixture(scope="module")
def latent() -> torch.Tensor:
    return torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def images(latent) -> torch.Tensor:
    with torch.inference_mode():
        return stock_decode(vaes.wan21(), latent)


def create_video(images: torch.Tensor) -> InputImpl.VideoFromComponents:
    """What ComfyUI's Create Video makes of the images."""
    return InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=RATE))


def decoded(latent: torch.Tensor, folder, vae=None) -> DecodedVideo:
    with torch.inference_mode():
        return DecodedVideo(*decode_video(vae or vaes.wan21(), latent, folder, ENCODE), RATE)


@pytest.fixture(scope="module")
def video(latent, tmp_path_factory) -> DecodedVideo:
    return decoded(latent, tmp_path_factory.mktemp("temp"))


KINDS = [
    {},
    {"format": "mp4", "codec": "h264"},
    {"crf": 40.0},
    {"crf": 3.0},
    {"bit_depth": 8},
    {"bit_depth": 10},
    {"color_space": "sRGB"},
    {"color_space": "HDR"},
    {"preset": "ultrafast"},
    {"codec": "av1"},
    {"format": "mkv"},
    {"format": "webm"},
]


def is_known(kind: dict) -> bool:
    """Whether this host can save a video so."""
    named = {"format": Types.VideoContainer, "codec": Types.VideoCodec}
    keywords = inspect.signature(InputImpl.VideoFromComponents.save_to).parameters
    return all(value in named[key].as_input() if key in named else key in keywords for key, value in kind.items())


@pytest.mark.parametrize("suffix", ["mp4", "mkv", None])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if is_known(kind)], ids=str)
def test_the_saved_video_is_the_one_comfyui_makes(video, images, tmp_path, kind, suffix):
    # ComfyUI makes a 10-bit video of its float frames; ours have 8 bits.
    deep = kind.get("bit_depth") == 10 or kind.get("color_space") == "HDR"
    stock = create_video(video.get_components().images if deep else images)
    saved = {}
    for name, source in (("ours", video), ("stock", stock)):
        saved[name] = BytesIO() if suffix is None else str(tmp_path / f"{name}.{suffix}")
        source.save_to(saved[name], metadata={"prompt": {"1": "fox"}}, **kind)
    ours, theirs = saved["ours"], saved["stock"]
    assert packets(ours) == packets(theirs) and len(packets(ours)) == 9
    assert tags(ours) == tags(theirs) and pixels(ours) == pixels(theirs)
    assert tags(ours)["pix_fmt"] == ("yuv420p10le" if deep else "yuv420p")
    rate, metadata = rate_and_metadata(ours)
    assert (rate, metadata) == rate_and_metadata(theirs)
    assert rate == 16 and json.loads({key.lower(): value for key, value in metadata.items()}["prompt"]) == {"1": "fox"}


@pytest.mark.parametrize("value", [None, 1])
def test_a_keyword_of_another_comfyui_reaches_the_stock_method(video, tmp_path, value):
    with pytest.raises(TypeError, match="unexpected keyword argument 'of_another_comfyui'"):
        video.save_to(str(tmp_path / "a.mp4"), of_another_comfyui=value)


def test_the_stream_is_copied_unless_it_is_to_be_another(latent, tmp_path):
    with torch.inference_mode():
        path, frames = decode_video(vaes.wan21(), latent, tmp_path / "temp", ENCODE)
        frames.zero_()
    video = DecodedVideo(path, frames, RATE)
    video.save_to(str(tmp_path / "copied.mp4"), crf=None)
    video.save_to(str(tmp_path / "encoded.mp4"), crf=3)
    assert packets(tmp_path / "copied.mp4") == packets(path)
    assert len(packets(tmp_path / "encoded.mp4")[0][1]) < len(packets(path)[0][1])  # a black picture


def test_encoding_anew_holds_one_frame_in_float32(video, tmp_path):
    with PeakBytes() as memory:
        video.save_to(str(tmp_path / "a.mp4"), crf=3)
        assert video.get_dimensions() == (48, 32) and video.get_duration() == 9 / 16
    mapped, image = 9 * 3 * 48 * 32, 4 * 3 * 48 * 32
    assert mapped < memory.peak <= mapped + 4 * image


def test_the_frames_have_eight_bits_without_loss_to_h264(video, images):
    components = video.get_components()
    assert components.images.dtype == torch.float32 and components.frame_rate == RATE and components.audio is None
    assert torch.equal(components.images, (images * 255).floor() / 255)
    assert video.get_frame_count() == 9 and video.get_frame_rate() == RATE and video.get_bit_depth() == 8


def test_a_trimmed_part_outlives_it(latent, tmp_path):
    video = decoded(latent, tmp_path / "temp")
    assert [path.suffix for path in (tmp_path / "temp").iterdir()] == [".mp4"]
    part = video.as_trimmed(0, 0.25)
    del video
    part.save_to(str(tmp_path / "part.mp4"))
    assert len(packets(tmp_path / "part.mp4")) == 4


def test_another_vae_makes_a_video_too(tmp_path):
    vae, z = vaes.taesd(), torch.randn(3, 4, 2, 2)
    with torch.inference_mode():
        images = decode_images(vae, z)
    assert torch.equal(decoded(z, tmp_path, vae).get_components().images, (images * 255).floor() / 255)


# Through a live server.


def random_latent(**changes) -> dict:
    return node("TestRandomLatent", **dict(channels=16, length=3, height=4, width=6, seed=1) | changes)


VAE = node("VAELoader", vae_name=checkpoints.VAE)
SAMPLES = {"samples": ["latent", 0], "vae": ["vae", 0]}


def video_job(prefix: str, how: dict = AUTO, **changes: dict) -> dict:
    video = node("TurboDiffusionVAEDecodeVideo", **SAMPLES, fps=16)
    save = node("SaveVideo", video=["video", 0], filename_prefix=prefix, **how)
    return {"latent": random_latent(), "vae": VAE, "video": video, "save": save} | changes


def image_job(prefix: str, **changes: dict) -> dict:
    images = node("TurboDiffusionVAEDecode", **SAMPLES)
    save = node("SaveImage", images=["images", 0], filename_prefix=prefix)
    return {"latent": random_latent(), "vae": VAE, "images": images, "save": save} | changes


def rated(fps: str) -> dict:
    """A job whose frame rate comes on a link, which ComfyUI does not check."""
    job = video_job("rate", rate=node("PrimitiveFloat", value=fps))
    job["video"]["inputs"]["fps"] = ["rate", 0]
    return job


def failing(at: int, above: int) -> dict:
    return node("TestFailingVAE", vae_name=checkpoints.VAE, at=at, above=above)


def settings(specs: dict, prefix: str = "") -> list[dict]:
    """The first choice of every widget, and then every other choice of each, as inputs of a prompt."""
    found = [{}]
    for name, kind, options in graph.specs(specs):
        key = prefix + name
        if kind == graph.DYNAMIC and not options.get("hidden"):
            choices = [{key: o["key"]} | more for o in options["options"] for more in settings(o["inputs"], f"{key}.")]
        elif kind == "COMBO":
            choices = [{key: value} for value in options["options"]]
        elif kind == "FLOAT":
            choices = [{key: 10.0}]
        else:
            continue
        found = [one | choices[0] for one in found] + [found[0] | choice for choice in choices[1:]]
    return found


def saves(server) -> list[dict]:
    return settings(server.client.object_info("SaveVideo")["input"])


@pytest.mark.server
def test_every_node_and_setting_gives_what_it_gives_for_a_stock_video(server):
    kinds = saves(server)
    assert {"auto", "mp4"} <= {save["format"] for save in kinds} and len(kinds) > 3
    job = video_job("ours") | {
        "frames": node("VAEDecode", **SAMPLES),
        "stock": node("CreateVideo", images=["frames", 0], fps=16),
        "parts": node("GetVideoComponents", video=["video", 0]),
        "again": node("CreateVideo", images=["parts", 0], fps=["parts", 2]),
    }
    for name in ("video", "stock"):
        cut = dict(start_time=0.125, duration=0.25, strict_duration=True)
        job[f"cut {name}"] = node("Video Slice", video=[name, 0], **cut)
        job[f"saved cut {name}"] = node("SaveVideo", video=[f"cut {name}", 0], filename_prefix="cut", **AUTO)
    pairs = {"saved cut video": "saved cut stock"}
    for i, save in enumerate(kinds):
        # HDR is made of more than 8 bits, which only the stock frames have.
        deep = any(str(value).startswith("HDR") for value in save.values())
        for name in ("video", "again" if deep else "stock"):
            job[f"save {i} {name}"] = node("SaveVideo", video=[name, 0], filename_prefix=name, **save)
        pairs[f"save {i} video"] = f"save {i} {name}"
    del job["save"]
    result = server.client.run(job)
    for one, other in pairs.items():
        ours, theirs = (saved_by(server, result, name) for name in (one, other))
        assert ours.suffix == theirs.suffix and tags(ours) == tags(theirs), job[one]
        assert packets(ours) == packets(theirs) and pixels(ours) == pixels(theirs), job[one]
        assert len(packets(ours)) == (4 if "cut" in one else 9)
        assert rate_and_metadata(ours) == rate_and_metadata(theirs), job[one]
    progress = [(p["value"], p["max"]) for p in result.of("progress") if p["node"] == "video"]
    assert progress == [(1, 2), (2, 2)]


def saved_by(server, result, name: str):
    (file,) = result.outputs[name]["images"]
    return server.output_dir / file["subfolder"] / file["filename"]


@pytest.mark.server
def test_a_cached_video_is_saved_again(server):
    server.client.run(video_job("once", latent=random_latent(seed=2)))
    encoded_again = next(save for save in saves(server) if any(key.endswith(".crf") for key in save))
    job = video_job("again", encoded_again, latent=random_latent(seed=2))
    job["frames"] = node("GetVideoComponents", video=["video", 0])
    job["pictures"] = node("SaveImage", images=["frames", 0], filename_prefix="again")
    again = server.client.run(job)
    assert "video" in again.cached_nodes and len(again.outputs["pictures"]["images"]) == 9
    assert len(packets(saved_by(server, again, "save"))) == 9


@pytest.mark.server
@pytest.mark.parametrize("make", [video_job, image_job])
def test_out_of_memory_in_the_middle_finishes_in_strips(server, make):
    result = server.client.run(make("strips", latent=random_latent(width=24), vae=failing(at=2, above=16)))
    assert len(result.files if make is image_job else packets(saved_by(server, result, "save"))) == 9
    assert "trying again in 2 strips" in server.log()


@pytest.mark.server
@pytest.mark.parametrize("make", [video_job, image_job])
def test_after_a_decode_that_never_fits_the_next_prompt_works(server, make):
    before = set((server.base / "temp").iterdir())
    with pytest.raises(ExecutionFailed, match="Allocation on device failed"):
        server.client.run(make("never", vae=failing(at=2, above=0)))
    assert set((server.base / "temp").iterdir()) == before
    server.client.run(make("after never", latent=random_latent(seed=7)))


@pytest.mark.server
@pytest.mark.parametrize(
    ("job", "message"),
    [
        (
            image_job("bad", latent=random_latent(channels=48)),
            r"The latent is \[1, 48, 3, 4, 6\] and this VAE decodes \[batch",
        ),
        *((rated(fps), r"fps is .*: choose 1 to 120 frames a second") for fps in ("0", "-5", "nan")),
    ],
)
def test_what_cannot_be_decoded_is_one_sentence(server, job, message):
    with pytest.raises(ExecutionFailed, match=message):
        server.client.run(job)


@pytest.mark.server
def test_a_mask_becomes_a_picture_and_its_size_goes_on(server):
    choices = {"resolution": "480p", "aspect": "image", "fit": "pad", "background": "gray"}
    job = {
        "mask": node("SolidMask", value=0.5, width=90, height=160),
        "ready": node("TurboDiffusionPrepareImage", image=["mask", 0], **choices),
        "same": node("EmptyImage", width=["ready", 1], height=["ready", 2], batch_size=1, color=0),
        "both": node("ImageBatch", image1=["ready", 0], image2=["same", 0]),
        "save": node("SaveImage", images=["both", 0], filename_prefix="mask"),
    }
    assert len(server.client.run(job).files) == 2
