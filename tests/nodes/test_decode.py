"""The decode nodes: the video equals ComfyUI's own, and failures through a live server leave it working."""

import json
from fractions import Fraction
from io import BytesIO

import av
import pytest
import torch
from comfy_api.latest import InputImpl, Types
from td_pack.nodes.decode import DecodedVideo
from td_pack.tests.support import checkpoints, vaes
from td_pack.tests.support.client import ExecutionFailed
from td_pack.tests.support.jobs import node
from td_pack.tests.support.videos import packets, rate_and_metadata
from td_pack.turbo_core.host.decode import decode_images, stock_decode
from td_pack.turbo_core.host.decode_video import decode_video

RATE = Fraction(16)


@pytest.fixture(scope="module")
def latent() -> torch.Tensor:
    return torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def images(latent) -> torch.Tensor:
    with torch.inference_mode():
        return stock_decode(vaes.wan21(), latent)


@pytest.fixture(scope="module")
def stock(images) -> InputImpl.VideoFromComponents:
    """What Create Video makes of the images."""
    return InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=RATE))


def decoded(latent: torch.Tensor, folder, vae=None) -> DecodedVideo:
    with torch.inference_mode():
        return DecodedVideo(*decode_video(vae or vaes.wan21(), latent, RATE, folder), RATE)


@pytest.fixture
def video(latent, tmp_path) -> DecodedVideo:
    return decoded(latent, tmp_path / "temp")


@pytest.mark.parametrize("how", [{}, {"crf": 40.0}, {"crf": 3.0}, {"bit_depth": 10}, {"bit_depth": 8}], ids=str)
def test_the_saved_video_is_the_one_comfyui_makes(video, stock, tmp_path, how):
    kind = dict(format=Types.VideoContainer.MP4, codec=Types.VideoCodec.H264, metadata={"prompt": {"1": "fox"}})
    for name, source in (("ours", video), ("stock", stock)):
        source.save_to(str(tmp_path / f"{name}.mp4"), **kind, **how)
    ours, theirs = tmp_path / "ours.mp4", tmp_path / "stock.mp4"
    if how.get("bit_depth") != 10:  # ComfyUI takes 16 bits from its float frames for a 10-bit video; ours have 8
        assert packets(ours) == packets(theirs)
    assert len(packets(ours)) == 9
    (rate, metadata), (stock_rate, stock_metadata) = rate_and_metadata(ours), rate_and_metadata(theirs)
    assert rate == stock_rate == 16 and json.loads(metadata["prompt"]) == {"1": "fox"} == json.loads(
        stock_metadata["prompt"]
    )
    with av.open(str(ours)) as container:
        assert container.streams.video[0].pix_fmt == ("yuv420p10le" if how.get("bit_depth") == 10 else "yuv420p")


def test_saving_to_a_buffer_works_as_comfyuis(video, stock):
    for how in ({}, {"crf": 10.0}):
        ours, theirs = BytesIO(), BytesIO()
        video.save_to(ours, **how)
        stock.save_to(theirs, **how)
        assert packets_of(ours) == packets_of(theirs)


def packets_of(buffer: BytesIO) -> list[bytes]:
    buffer.seek(0)
    with av.open(buffer) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def test_frames_come_back_in_eight_bits_without_loss_to_h264(video, images):
    components = video.get_components()
    assert components.images.dtype == torch.float32 and components.frame_rate == RATE and components.audio is None
    assert torch.equal(components.images, (images * 255).floor() / 255)


def test_it_knows_itself_without_its_frames(video):
    assert video.get_dimensions() == (48, 32) and video.get_frame_count() == 9
    assert video.get_frame_rate() == RATE and video.get_duration() == 9 / 16 and video.get_bit_depth() == 8


def test_a_trimmed_part_outlives_it(video, tmp_path):
    part = video.as_trimmed(0, 0.25)
    del video
    part.save_to(str(tmp_path / "part.mp4"))
    assert len(packets(tmp_path / "part.mp4")) == 4


def test_only_the_mp4_is_left_in_the_folder(video, tmp_path):
    assert [path.suffix for path in (tmp_path / "temp").iterdir()] == [".mp4"]


def test_running_out_of_memory_midway_gives_a_whole_video(tmp_path):
    z = torch.randn(1, 16, 3, 2, 24, generator=torch.Generator().manual_seed(6))
    vae = vaes.wan21()
    vaes.out_of_memory(vae, 2, above=16)
    video = decoded(z, tmp_path, vae)
    assert video.get_frame_count() == video.get_components().images.shape[0] == 9


def test_another_vae_makes_a_video_too(tmp_path):
    vae, z = vaes.taesd(), torch.randn(3, 4, 2, 2)
    with torch.inference_mode():
        images = decode_images(vae, z)
    assert torch.equal(decoded(z, tmp_path, vae).get_components().images, (images * 255).floor() / 255)


# Through a live server.


def random_latent(**changes) -> dict:
    return node("TestRandomLatent", **dict(channels=16, length=3, height=4, width=6, seed=1) | changes)


def video_job(prefix: str, codec: dict | None = None, **changes: dict) -> dict:
    return {
        "latent": random_latent(),
        "vae": node("VAELoader", vae_name=checkpoints.VAE),
        "video": node("TurboDiffusionVAEDecodeVideo", samples=["latent", 0], vae=["vae", 0], fps=16),
        "save": node(
            "SaveVideo", video=["video", 0], filename_prefix=prefix, format="auto", **(codec or {"codec": "auto"})
        ),
    } | changes


def image_job(prefix: str, **changes: dict) -> dict:
    return {
        "latent": random_latent(),
        "vae": node("VAELoader", vae_name=checkpoints.VAE),
        "images": node("TurboDiffusionVAEDecode", samples=["latent", 0], vae=["vae", 0]),
        "save": node("SaveImage", images=["images", 0], filename_prefix=prefix),
    } | changes


def failing(at: int, above: int) -> dict:
    return node("TestFailingVAE", vae_name=checkpoints.VAE, at=at, above=above)


def output(server, result):
    (file,) = result.files
    return server.output_dir / file["subfolder"] / file["filename"]


@pytest.mark.server
def test_a_job_saves_what_the_stock_nodes_save(server):
    ours = server.client.run(video_job("ours"))
    stock = video_job("stock", video=node("CreateVideo", images=["frames", 0], fps=16))
    stock["frames"] = node("VAEDecode", samples=["latent", 0], vae=["vae", 0])
    theirs = server.client.run(stock)
    one, other = output(server, ours), output(server, theirs)
    assert packets(one) == packets(other) and len(packets(one)) == 9
    rate, metadata = rate_and_metadata(one)
    assert rate == 16 and json.loads(metadata["prompt"])["video"]["class_type"] == "TurboDiffusionVAEDecodeVideo"
    assert [(p["value"], p["max"]) for p in ours.of("progress") if p["node"] == "video"] == [(1, 2), (2, 2)]


@pytest.mark.server
def test_a_cached_video_is_saved_again(server):
    server.client.run(video_job("once", latent=random_latent(seed=2)))
    job = video_job(
        "again",
        latent=random_latent(seed=2),
        codec={"codec": "h264", "codec.encoding": "re-encode", "codec.encoding.crf": 5},
    )
    job["frames"] = node("GetVideoComponents", video=["video", 0])
    job["pictures"] = node("SaveImage", images=["frames", 0], filename_prefix="again")
    again = server.client.run(job)
    assert "video" in again.cached_nodes
    assert len(again.outputs["pictures"]["images"]) == 9
    files = sorted(server.output_dir.glob("again_*.mp4"))
    assert len(packets(files[-1])) == 9


@pytest.mark.server
@pytest.mark.parametrize("make", [video_job, image_job])
def test_out_of_memory_in_the_middle_finishes_in_strips(server, make):
    result = server.client.run(make("strips", latent=random_latent(width=24), vae=failing(at=2, above=16)))
    assert len(result.files) == (1 if make is video_job else 9)
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
def test_interrupt_and_free_between_chunks_leave_the_server_working(server):
    before = set((server.base / "temp").iterdir())
    job = video_job("interrupted", latent=random_latent(length=101, height=8, width=8, seed=3))

    def stop(kind: str, data: dict) -> None:
        if kind == "progress" and data["node"] == "video" and data["value"] == 1:
            server.client.interrupt()

    result = server.client.run(job, on_event=stop, check=False)
    assert result.interrupted and result.of("progress")[-1]["value"] < 51
    assert set((server.base / "temp").iterdir()) == before

    def free(kind: str, data: dict) -> None:
        if kind == "progress" and data["node"] == "video":
            server.client.post("/free", {"unload_models": True, "free_memory": True})

    assert server.client.run(video_job("freed", latent=random_latent(seed=8)), on_event=free).files
    assert server.client.run(video_job("after free", latent=random_latent(seed=9))).files


@pytest.mark.server
def test_another_models_latent_is_one_sentence(server):
    with pytest.raises(
        ExecutionFailed, match=r"The latent is \[1, 48, 3, 4, 6\] and this VAE decodes \[batch, 16, frames"
    ):
        server.client.run(image_job("wrong", latent=random_latent(channels=48)))


@pytest.mark.server
@pytest.mark.parametrize("fps", ["0", "-5", "nan"])
def test_a_frame_rate_on_a_link_is_checked_before_decoding(server, fps):
    job = video_job("rate", rate=node("PrimitiveFloat", value=fps))
    job["video"]["inputs"]["fps"] = ["rate", 0]
    with pytest.raises(ExecutionFailed, match=r"fps is .*: choose 1 to 120 frames a second"):
        server.client.run(job)


@pytest.mark.server
def test_a_mask_becomes_a_picture_and_its_size_goes_on(server):
    job = {
        "mask": node("SolidMask", value=0.5, width=90, height=160),
        "ready": node(
            "TurboDiffusionPrepareImage",
            image=["mask", 0],
            resolution="480p",
            aspect="image",
            fit="pad",
            background="gray",
        ),
        "same": node("EmptyImage", width=["ready", 1], height=["ready", 2], batch_size=1, color=0),
        "both": node("ImageBatch", image1=["ready", 0], image2=["same", 0]),
        "save": node("SaveImage", images=["both", 0], filename_prefix="mask"),
    }
    assert len(server.client.run(job).files) == 2
