"""The shipped workflows on a live server with the toy models: the videos match their prompts."""

import av
import numpy as np
import pytest
import torch
from PIL import Image
from td_pack.tests.support import checkpoints, workflows
from td_pack.tests.tiny import demo, vision, world

IMAGE = "toy-first-frame.png"


@pytest.mark.server
def test_the_demos_image_to_video_job_moves_the_shape_it_is_given(server, tmp_path):
    checkpoints.write_toy_models(server.models_dir)
    text = demo.TOY_PROMPTS["i2v"]
    wanted = world.place(world.parse(text), demo.TOY_FIRST_FRAME)
    given = world.render(wanted, frames=1)[0]
    Image.fromarray((given * 255).round().byte().numpy()).save(server.input_dir / IMAGE)
    prompt = workflows.fit(workflows.load(demo.JOBS["i2v"]), models=demo.TOY_FILES, toy_text=text, **demo.TOY_SIZE)
    for node in prompt.values():
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = IMAGE
    result = server.client.run(prompt)
    path = tmp_path / "video.mp4"
    path.write_bytes(server.client.view(result.files[0]))
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    clip = torch.from_numpy(np.stack(frames)).float() / 255
    assert clip.shape == (world.FRAMES, world.SIZE, world.SIZE, 3)
    score = vision.score(clip, wanted)
    assert score.color and score.direction and score.background
    assert vision.psnr(clip[0], given) >= 25  # what the models reach without the video's compression is 30 and more
