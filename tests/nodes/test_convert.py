"""TurboDiffusionConvert through a live server: it converts, its file loads, and what it refuses."""

import os

import comfy.model_management
import folder_paths
import pytest
from td_pack.nodes.convert import TurboDiffusionConvert
from td_pack.tests.support import checkpoints, lingbot
from td_pack.tests.support.client import PromptRejected
from td_pack.tests.support.jobs import loader, node, saved, t2v_job
from td_pack.turbo_core.checkpoint.read import read_safetensors

server_test = pytest.mark.server


def job(output_name: str, weights: str = "int8_block", **more) -> dict:
    inputs = dict(model_name=checkpoints.T2V_SLA, output_name=output_name, weights=weights)
    return {"convert": node("TurboDiffusionConvert", **inputs | more)}


def refusals(server, prompt: dict) -> list[dict]:
    with pytest.raises(PromptRejected) as caught:
        server.client.queue(prompt)
    return caught.value.node_errors["convert"]["errors"]


@server_test
def test_a_converted_file_loads_in_the_next_prompt_and_is_not_overwritten(server):
    path = server.models_dir / "diffusion_models" / "made" / "by node.safetensors"
    result = server.client.run(job("made/by node"))
    (text,) = result.outputs["convert"]["text"]
    assert text.startswith("by node.safetensors: TurboWan T2V 2 layers of width 256 int8 with SLA")
    values = [event["value"] / event["max"] for event in result.of("progress") if event["node"] == "convert"]
    assert values and values == sorted(values) and values[-1] == 1
    server.client.run(t2v_job("converted", model=loader("made/by node.safetensors")))
    assert saved(server, "converted").isfinite().all()

    content = path.read_bytes()
    (error,) = [e for e in refusals(server, job("made/by node", "bf16")) if e["details"].startswith("output_name")]
    assert error["type"] == "custom_validation_failed" and error["details"] == (
        "output_name - by node.safetensors exists already; set overwrite to replace it, or choose another output_name."
    )
    assert path.read_bytes() == content
    server.client.run(job("made/by node", "bf16", overwrite=True))
    assert path.read_bytes() != content


BAD = [
    (dict(output_name="../escaped"), "output_name - output_name is '../escaped': give a name inside"),
    (dict(output_name=""), "give the new file a name"),
    (dict(model_name="absent.pth"), "absent.pth"),
    (dict(weights="int4"), "int4"),
    (dict(lora_name="absent"), "absent"),
    (dict(base_name=checkpoints.I2V_HIGH), "A delta needs both base_name"),
    (
        dict(base_name="../../secret.pth", teacher_name="none"),
        "'../../secret.pth' is not a file in the diffusion_models",
    ),
]


@server_test
@pytest.mark.parametrize("inputs,message", BAD)
def test_what_is_visible_before_running_is_a_node_error(server, inputs, message):
    errors = refusals(server, job(**{"output_name": "new"} | inputs))
    assert any(message in error["details"] for error in errors), errors


@server_test
def test_a_lora_and_a_delta_are_merged_by_the_node(server):
    checkpoints.write_safetensors(server.models_dir / "loras" / "merge.safetensors", checkpoints.lora("kohya"))
    checkpoints.write_pth(server.models_dir / "diffusion_models" / "teacher.pth", checkpoints.upstream_state_dict(9))
    merges = dict(base_name=checkpoints.I2V_HIGH, teacher_name="teacher.pth", lora_name="merge.safetensors")
    result = server.client.run(job("merged", "bf16", **merges, delta=0.5, lora_strength=0.5))
    (text,) = result.outputs["convert"]["text"]
    assert "changed by 0.5 * (tiny_t2v_sla.pth - teacher.pth)" in text
    # The LoRA's third layer is a proj_l, which the base lacks.
    assert "merge.safetensors merged into 2 layers at strength 0.5" in text


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """ComfyUI's two folders of diffusion models, with a checkpoint in the second."""
    paths = [tmp_path / "unet", tmp_path / "diffusion_models"]
    for path in paths:
        path.mkdir()
    extensions = folder_paths.supported_pt_extensions
    known = folder_paths.folder_names_and_paths | {"diffusion_models": ([str(path) for path in paths], extensions)}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    checkpoints.write_pth(paths[1] / "source.pth", checkpoints.upstream_state_dict(1, layers=1))
    return paths


def test_a_new_file_goes_to_the_folder_of_that_name_and_an_old_one_is_replaced_where_it_is(folders):
    unet, models = folders
    (path,) = TurboDiffusionConvert.execute("source.pth", "new", "keep").args
    assert path == str(models / "new.safetensors")
    (unet / "old.safetensors").write_bytes(b"")
    (path,) = TurboDiffusionConvert.execute("source.pth", "old", "keep", overwrite=True).args
    assert path == str(unet / "old.safetensors") and read_safetensors(unet / "old.safetensors")


def test_an_interrupt_ends_the_conversion(folders):
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        TurboDiffusionConvert.execute("source.pth", "new", "keep")
    assert [path.name for path in folders[1].iterdir()] == ["source.pth"]


def test_it_runs_again_when_its_file_is_gone_or_an_input_changed(folders):
    def fingerprint():
        return TurboDiffusionConvert.fingerprint_inputs("source.pth", "new", weights="keep")

    assert fingerprint() != fingerprint()
    TurboDiffusionConvert.execute("source.pth", "new", "keep")
    before = fingerprint()
    assert before == fingerprint()
    checkpoints.write_pth(folders[1] / "source.pth", checkpoints.upstream_state_dict(2, layers=2))
    assert before != fingerprint()


def test_it_runs_again_when_one_of_several_files_of_its_model_changed(folders):
    index = lingbot.write_shards(folders[1], checkpoints.upstream_state_dict(2), 2)
    before = TurboDiffusionConvert.fingerprint_inputs(index.name, "source")
    part = next(folders[1].glob("*-00002-of-*"))
    os.utime(part, ns=(0, 0))
    assert TurboDiffusionConvert.fingerprint_inputs(index.name, "source")[0] != before[0]
