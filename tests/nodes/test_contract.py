"""The node contract: ids, inputs in order with types, defaults and limits, outputs; and that every node explains
itself."""

import asyncio
import inspect
import re

import folder_paths
import pytest
from comfy_api.latest import io
from td_pack.nodes import TurboDiffusionExtension
from td_pack.nodes.replacements import OLD

FLAGS = ("optional", "lazy", "advanced", "control_after_generate")
# A block for each node, from the node contract: its id and outputs, and a line for each input:
# name TYPE=default [min, max] or [option|option] flags. [files] are those of a folder of models.
CONTRACT = """
TurboDiffusionLoader -> MODEL
  model_name COMBO [files]
  dtype COMBO=auto [auto|bf16|fp16|fp32]
  activations COMBO=fine [fine|upstream] optional
TurboDiffusionSLA -> MODEL
  model MODEL
  mode COMBO=auto [auto|sla|sagesla|dense]
  topk FLOAT=0.1 [0.01, 1.0]
  dense_blocks STRING='' advanced
  allow_untrained BOOLEAN=False advanced
  dense_steps INT=0 [0, 10000] optional advanced
TurboDiffusionSigmas -> SIGMAS sigmas, SIGMAS high, SIGMAS low
  steps INT=4 [1, 16]
  sigma_max FLOAT=80.0 [0.0, 1000000.0]
  boundary FLOAT=0.9 [0.001, 1.0] advanced
TurboDiffusionSampler -> SAMPLER
  mode COMBO=auto [auto|sde|ode]
  noise_device COMBO=cpu [cpu|gpu] advanced
TurboDiffusionGuider -> GUIDER
  high MODEL
  positive CONDITIONING
  boundary FLOAT=0.9 [0.001, 1.0] advanced
  low MODEL optional
  negative CONDITIONING optional
  cfg_high FLOAT=1.0 [0.0, 100.0] optional
  cfg_low FLOAT=1.0 [0.0, 100.0] optional
TurboDiffusionSample -> LATENT
  high MODEL
  positive CONDITIONING
  latent LATENT
  seed INT=0 [0, 18446744073709551615] control_after_generate
  steps INT=4 [1, 16]
  sigma_max FLOAT=0.0 [0.0, 1000000.0] advanced
  boundary FLOAT=0.9 [0.001, 1.0] advanced
  mode COMBO=auto [auto|sde|ode]
  noise_device COMBO=cpu [cpu|gpu] advanced
  low MODEL optional lazy
  negative CONDITIONING optional
  cfg_high FLOAT=1.0 [0.0, 100.0] optional advanced
  cfg_low FLOAT=1.0 [0.0, 100.0] optional advanced
TurboDiffusionLoRA -> MODEL
  model MODEL
  lora_name COMBO [files]
  strength FLOAT=1.0 [-20.0, 20.0]
TurboDiffusionParallel -> MODEL
  model MODEL
  gpus INT=0 [0, 1024]
  backend COMBO=auto [auto|nccl|gloo] advanced
  address STRING='' optional advanced
TurboDiffusionConvert -> STRING path
  model_name COMBO [files]
  output_name STRING=''
  weights COMBO=keep [keep|int8_block|bf16|fp8_e4m3fn|int8_rowwise]
  overwrite BOOLEAN=False optional
  lora_name COMBO=none [none|files] optional
  lora_strength FLOAT=1.0 [-100.0, 100.0] optional
  base_name COMBO=none [none|files] optional advanced
  teacher_name COMBO=none [none|files] optional advanced
  delta FLOAT=1.0 [-10.0, 10.0] optional advanced
TurboDiffusionVAEDecode -> IMAGE
  samples LATENT lazy
  vae VAE
TurboDiffusionVAEDecodeVideo -> VIDEO
  samples LATENT lazy
  vae VAE
  fps FLOAT=16.0 [1.0, 120.0]
TurboDiffusionJoinVideo -> VIDEO video, IMAGE last_frames
  video VIDEO
  overlap INT=5 [1, 81]
  before VIDEO optional
TurboDiffusionPrepareImage -> IMAGE, INT width, INT height
  image IMAGE,MASK
  resolution COMBO=480p [480p|720p]
  aspect COMBO=image [image|16:9|9:16|4:3|3:4|1:1]
  fit COMBO=stretch [stretch|crop|pad]
  background COMBO=black [black|gray|white] optional
TurboDiffusionTextEncode -> CONDITIONING
  encoder_name COMBO [files]
  text STRING
  cache BOOLEAN=True
TurboDiffusionCompare -> IMAGE side_by_side, IMAGE plot, STRING report
  a IMAGE
  b IMAGE
  label_a STRING='A'
  label_b STRING='B'
TurboDiffusionStatus -> STRING report
  any * optional
TurboDiffusionLegacyLoader -> MODEL
  model_name COMBO [files]
  attention_type COMBO=sla [original|sla|sagesla]
  sla_topk FLOAT=0.1 [0.01, 1.0]
TurboDiffusionLegacyI2V -> IMAGE frames
  high_noise_model MODEL
  low_noise_model MODEL lazy
  conditioning CONDITIONING
  vae VAE
  image IMAGE
  num_frames INT=77 [1, 241]
  num_steps INT=4 [1, 4]
  resolution COMBO=480 [480|480p|512|720|720p|custom]
  aspect_ratio COMBO=16:9 [16:9|9:16|4:3|3:4|1:1]
  boundary FLOAT=0.9 [0.0, 1.0]
  sigma_max FLOAT=200.0 [1.0, 1000.0]
  seed INT=0 [0, 18446744073709551615] control_after_generate
  use_ode BOOLEAN=False
  width INT=480 [64, 2048]
  height INT=480 [64, 2048]
TurboDiffusionLegacyT2V -> IMAGE frames
  model MODEL
  prompt STRING=''
  vae VAE
  num_frames INT=81 [1, 241]
  num_steps INT=4 [1, 4]
  resolution COMBO=480p [480|480p|512|720|720p]
  aspect_ratio COMBO=16:9 [16:9|9:16|4:3|3:4|1:1]
  sigma_max FLOAT=80.0 [1.0, 1000.0]
  seed INT=0 [0, 18446744073709551615] control_after_generate
  use_ode BOOLEAN=False
  conditioning CONDITIONING optional
  text_encoder CLIP optional
TurboDiffusionLegacySaveVideo -> IMAGE frames
  frames IMAGE
  filename_prefix STRING='turbodiffusion'
  fps INT=24 [1, 60]
  format COMBO=mp4 [mp4|gif|webm]
TurboDiffusionCameraPath -> TURBO_CAMERA, INT length
  source COMBO=actions [actions|preset|folder]
  actions STRING='w-40'
  preset COMBO=forward [forward|back|orbit_left|orbit_right|pan_left|pan_right|tilt_up|tilt_down|dolly_zoom|static]
  amount FLOAT=1.0 [0.0, 10.0]
  ease COMBO=linear [linear|smooth]
  folder STRING=''
  convention COMBO=opencv [opencv|opengl] advanced
  length INT=81 [1, 4001]
  fov FLOAT=0.0 [0.0, 170.0] advanced
  max_length INT=0 [0, 4001] optional advanced
TurboDiffusionCameraEmbed -> WAN_CAMERA_EMBEDDING, IMAGE preview
  camera TURBO_CAMERA
  width INT=832 [16, 8192]
  height INT=480 [16, 8192]
  control COMBO=cam [cam|act]
TurboDiffusionCameraCondition -> CONDITIONING positive, CONDITIONING negative
  positive CONDITIONING
  camera_embed WAN_CAMERA_EMBEDDING
  negative CONDITIONING optional
"""
BLOCKS = {block.split(" -> ")[0]: block for block in re.split(r"\n(?=\S)", CONTRACT.strip())}
NODES = {node.define_schema().node_id: node for node in asyncio.run(TurboDiffusionExtension().get_node_list())}


def written(given: io.Input) -> str:
    """An input as CONTRACT writes it."""
    text = f"{given.id} {given.get_io_type()}"
    values = given.as_dict()
    if "default" in values:
        text += f"={values['default']!r}" if given.get_io_type() == "STRING" else f"={values['default']}"
    if "min" in values or "max" in values:
        text += f" [{values.get('min')}, {values.get('max')}]"
    if "options" in values:
        folder = {"lora_name": "loras", "encoder_name": "text_encoders"}.get(given.id, "diffusion_models")
        files = folder_paths.get_filename_list(folder)
        listed = {(*files,): "files", ("none", *files): "none|files"} if given.id.endswith("_name") else {}
        text += f" [{listed.get((*values['options'],), '|'.join(values['options']))}]"
    return " ".join([text, *(flag for flag in FLAGS if values.get(flag))])


def test_every_node_is_in_the_contract():
    assert set(NODES) == set(BLOCKS)


@pytest.mark.parametrize("node_id", BLOCKS)
def test_node_contract(node_id):
    schema = NODES[node_id].define_schema()
    outputs = [" ".join(filter(None, (output.get_io_type(), output.display_name))) for output in schema.outputs]
    inputs = [f"  {written(given)}" for given in schema.inputs]
    assert "\n".join([f"{node_id} -> {', '.join(outputs)}", *inputs]) == BLOCKS[node_id]
    assert schema.category == "TurboDiffusion"
    assert list(inspect.signature(NODES[node_id].execute).parameters) == [given.id for given in schema.inputs]


def test_the_nodes_that_may_end_a_workflow():
    ends = {name for name, each in NODES.items() if each.define_schema().is_output_node}
    assert {name.removeprefix("TurboDiffusion") for name in ends} == {"Compare", "Convert", "Status", "LegacySaveVideo"}


def test_a_stand_in_is_found_by_the_name_of_the_old_node():
    stand_ins = [(NODES[old.new].define_schema(), name) for old in OLD if old.new in NODES for name in old.ids]
    assert len(stand_ins) == 6
    for schema, name in stand_ins:
        assert any(name.startswith(word) for word in ("TurboDiffusion", *schema.search_aliases))


@pytest.mark.parametrize("node_id", NODES)
def test_a_node_explains_itself(node_id):
    schema = NODES[node_id].define_schema()
    assert schema.description.endswith(".") and schema.search_aliases
    assert schema.display_name.startswith("TurboDiffusion ")
    if schema.is_deprecated:
        return  # stands in for another pack's node in old workflows, and names its inputs as that one does
    for part in (*schema.inputs, *schema.outputs):
        assert part.tooltip and part.tooltip.endswith("."), part
