"""What holds for the whole pack: who imports whom, what an import costs, and the nodes' contract."""

import ast
import asyncio
import inspect
import re
import sys
from pathlib import Path

import folder_paths
import pytest
from comfy_api.latest import io
from td_pack.nodes import TurboDiffusionExtension
from td_pack.tests.support.fresh import fresh

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted(
    path.relative_to(ROOT)
    for path in ROOT.rglob("*.py")
    if not path.relative_to(ROOT).parts[0].startswith(("tests", "docs", ".", "__pycache__"))
)
COMMAND_LINE = {Path("dev.py"), Path("install.py")}  # talk to a person, and are no part of the running pack
SOURCES = [path for path in SHIPPED if path not in COMMAND_LINE]
TOP_LEVEL = {"nodes", "turbo_core", "kernels", "tests"}


def layer(path: Path) -> str:
    """The row of ALLOWED that a file belongs to."""
    parts = path.with_suffix("").parts
    return next((row for row in ALLOWED if "/" in row and parts[:2] == tuple(row.split("/"))), parts[0])


# layer -> what it may import of the pack, which other modules it may not
HOST = {"comfy", "comfy_api", "comfy_aimdo", "comfy_extras", "comfy_execution", "comfy_kitchen", "execution", "server"}
ALLOWED = {
    "__init__": ({"nodes", "turbo_core"}, HOST | {"folder_paths", "torch", "triton"}),
    "nodes": ({"nodes", "turbo_core", "turbo_core/host", "kernels"}, {"triton"}),
    "turbo_core/host": ({"turbo_core", "turbo_core/host", "kernels"}, {"folder_paths", "comfy_api", "triton"}),
    "turbo_core": ({"turbo_core", "kernels"}, HOST | {"folder_paths", "triton"}),
    "kernels": ({"kernels"}, HOST | {"folder_paths"}),
    "kernels/kitchen": ({"kernels"}, HOST - {"comfy_kitchen"} | {"folder_paths", "triton"}),
}


def imports(path: Path) -> tuple[set[str], set[str]]:
    """The layers of the pack and the top-level names of other modules that a file imports, at any depth in it."""
    inside, outside = set(), set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            outside |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            outside.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            inside |= {layer(base / name.name) for name in node.names}
    return inside, outside


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_go_down_only(path):
    inside, outside = imports(path)
    below, refused = ALLOWED[layer(path)]
    assert inside <= below
    assert not outside & refused
    assert not outside & TOP_LEVEL, "the pack's own modules are imported relatively: `nodes` is ComfyUI's"
    if layer(path) == "kernels":
        assert outside <= {"torch", "triton", *sys.stdlib_module_names}


def test_every_layer_was_seen():
    assert {layer(path) for path in SOURCES} == set(ALLOWED)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_no_prints(path):
    calls = (node for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.Call))
    assert not [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_sources_are_short_and_ascii(path):
    text = (ROOT / path).read_bytes()
    assert text.isascii()
    assert len(text.splitlines()) <= 300


def test_nothing_is_installed():
    """ComfyUI brings all that the pack imports; listing torch or triton could replace the user's own build."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    listed = re.search(r"^dependencies = (\[.*?\])", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert ast.literal_eval(listed[1]) == [line for line in lines if line] == []


def test_importing_the_pack_is_free(tmp_path):
    seconds, *modules = fresh(
        "began = time.perf_counter(); load(); print(time.perf_counter() - began, *sys.modules)", tmp_path
    ).split()
    assert "pack" in modules
    assert not [
        name for name in modules if name.split(".")[0] in ("torch", "triton", "comfy") or name.startswith("pack.")
    ]
    assert float(seconds) < 0.3  # measured 2 ms; torch alone takes a second, so a busy machine does not blur the two


def test_core_and_kernels_import_without_triton_and_comfyui(tmp_path):
    modules = [".".join(("pack", *path.with_suffix("").parts)) for path in SOURCES if layer(path) == "turbo_core"]
    modules = [name.removesuffix(".__init__") for name in modules]
    out = fresh(
        f"""
refused = {sorted(HOST | {"triton", "folder_paths", "nodes"})!r}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in refused:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
load()
for name in {["pack.kernels", *modules]!r}:
    importlib.import_module(name)
print(*(name for name in sys.modules if name.startswith("pack.")))
""",
        tmp_path,
    )
    assert {"pack.kernels", *modules} <= set(out.split())


@pytest.mark.parametrize("version", ["0.29.3", "0.3.77", None])
def test_a_comfyui_that_is_too_old_is_told_so(version, tmp_path):
    host = tmp_path / "comfyui_version.py"
    host.write_text(f"__version__ = {version!r}" if version else "raise ImportError")
    out = fresh(
        f"""
import asyncio
sys.path.insert(0, {str(tmp_path)!r})
try:
    asyncio.run(load().comfy_entrypoint())
except ImportError as error:
    print(error)
print([name for name in sys.modules if name.startswith("pack.nodes")])
""",
        tmp_path,
    )
    stated = version or "0"
    assert out.splitlines() == [
        f"TurboDiffusion: this ComfyUI ({stated}) is too old, 0.30.0 or newer is needed; update ComfyUI and start it again.",
        "[]",
    ]


# name TYPE=default [min, max] or [options] flags; from the node contract
SEED = f"seed INT=0 [0, {2**64 - 1}] control_after_generate"
STEPS = "steps INT=4 [1, 16]"
BOUNDARY = "boundary FLOAT=0.9 [0.001, 1.0]"
MODE = "mode COMBO=sde [sde, ode]"
NOISE_DEVICE = "noise_device COMBO=cpu [cpu, gpu]"
LATER_INPUTS = [
    "negative CONDITIONING optional",
    "cfg_high FLOAT=1.0 [0.0, 100.0] optional",
    "cfg_low FLOAT=1.0 [0.0, 100.0] optional",
]
CONTRACT = {
    "TurboDiffusionLoader": (
        ["model_name COMBO [files]", "dtype COMBO=auto [auto, bf16, fp16, fp32]"],
        ["MODEL"],
    ),
    "TurboDiffusionSLA": (
        [
            "model MODEL",
            "mode COMBO=auto [auto, sla, sagesla, dense]",
            "topk FLOAT=0.1 [0.01, 1.0]",
            "dense_blocks STRING=''",
            "allow_untrained BOOLEAN=False",
            "dense_steps INT=0 [0, 10000] optional",
        ],
        ["MODEL"],
    ),
    "TurboDiffusionSigmas": (
        [STEPS, "sigma_max FLOAT=80.0 [0.0, 1000000.0]", BOUNDARY],
        ["SIGMAS sigmas", "SIGMAS high", "SIGMAS low"],
    ),
    "TurboDiffusionSampler": ([MODE, NOISE_DEVICE], ["SAMPLER"]),
    "TurboDiffusionGuider": (
        ["high MODEL", "positive CONDITIONING", BOUNDARY, "low MODEL optional", *LATER_INPUTS],
        ["GUIDER"],
    ),
    "TurboDiffusionSample": (
        [
            "high MODEL",
            "positive CONDITIONING",
            "latent LATENT",
            SEED,
            STEPS,
            "sigma_max FLOAT=0.0 [0.0, 1000000.0]",
            BOUNDARY,
            MODE,
            NOISE_DEVICE,
            "low MODEL optional lazy",
            *LATER_INPUTS,
        ],
        ["LATENT"],
    ),
    "TurboDiffusionLoRA": (["model MODEL", "lora_name COMBO [files]", "strength FLOAT=1.0 [-20.0, 20.0]"], ["MODEL"]),
    "TurboDiffusionConvert": (
        [
            "model_name COMBO [files]",
            "output_name STRING=''",
            "weights COMBO=keep [keep, int8_block, bf16, fp8_e4m3fn, int8_rowwise]",
            "overwrite BOOLEAN=False optional",
            "lora_name COMBO=none [none, files] optional",
            "lora_strength FLOAT=1.0 [-100.0, 100.0] optional",
            "base_name COMBO=none [none, files] optional",
            "teacher_name COMBO=none [none, files] optional",
            "delta FLOAT=1.0 [-10.0, 10.0] optional",
        ],
        ["STRING path"],
    ),
    "TurboDiffusionVAEDecode": (["samples LATENT", "vae VAE"], ["IMAGE"]),
    "TurboDiffusionVAEDecodeVideo": (["samples LATENT", "vae VAE", "fps FLOAT=16.0 [1.0, 120.0]"], ["VIDEO"]),
    "TurboDiffusionPrepareImage": (
        [
            "image IMAGE,MASK",
            "resolution COMBO=480p [480p, 720p]",
            "aspect COMBO=image [image, 16:9, 9:16, 4:3, 3:4, 1:1]",
            "fit COMBO=stretch [stretch, crop, pad]",
            "background COMBO=black [black, gray, white] optional",
        ],
        ["IMAGE", "INT width", "INT height"],
    ),
    "TurboDiffusionTextEncode": (
        ["encoder_name COMBO [files]", "text STRING", "cache BOOLEAN=True"],
        ["CONDITIONING"],
    ),
    "TurboDiffusionCompare": (
        ["a IMAGE", "b IMAGE", "label_a STRING='A'", "label_b STRING='B'"],
        ["IMAGE side_by_side", "IMAGE plot", "STRING report"],
    ),
    "TurboDiffusionStatus": (["any * optional"], ["STRING report"]),
    "TurboDiffusionLegacyLoader": (
        [
            "model_name COMBO [files]",
            "attention_type COMBO=sla [original, sla, sagesla]",
            "sla_topk FLOAT=0.1 [0.01, 1.0]",
        ],
        ["MODEL"],
    ),
    "TurboDiffusionLegacyI2V": (
        [
            "high_noise_model MODEL",
            "low_noise_model MODEL lazy",
            "conditioning CONDITIONING",
            "vae VAE",
            "image IMAGE",
            "num_frames INT=77 [1, 241]",
            "num_steps INT=4 [1, 4]",
            "resolution COMBO=480 [480, 480p, 512, 720, 720p, custom]",
            "aspect_ratio COMBO=16:9 [16:9, 9:16, 4:3, 3:4, 1:1]",
            "boundary FLOAT=0.9 [0.0, 1.0]",
            "sigma_max FLOAT=200.0 [1.0, 1000.0]",
            SEED,
            "use_ode BOOLEAN=False",
            "width INT=480 [64, 2048]",
            "height INT=480 [64, 2048]",
        ],
        ["IMAGE frames"],
    ),
    "TurboDiffusionLegacyT2V": (
        [
            "model MODEL",
            "prompt STRING=''",
            "vae VAE",
            "num_frames INT=81 [1, 241]",
            "num_steps INT=4 [1, 4]",
            "resolution COMBO=480p [480, 480p, 512, 720, 720p]",
            "aspect_ratio COMBO=16:9 [16:9, 9:16, 4:3, 3:4, 1:1]",
            "sigma_max FLOAT=80.0 [1.0, 1000.0]",
            SEED,
            "use_ode BOOLEAN=False",
            "conditioning CONDITIONING optional",
            "text_encoder CLIP optional",
        ],
        ["IMAGE frames"],
    ),
    "TurboDiffusionLegacySaveVideo": (
        [
            "frames IMAGE",
            "filename_prefix STRING='turbodiffusion'",
            "fps INT=24 [1, 60]",
            "format COMBO=mp4 [mp4, gif, webm]",
        ],
        ["IMAGE frames"],
    ),
    "TurboDiffusionCameraPath": (
        [
            "source COMBO=actions [actions, preset, folder]",
            "actions STRING='w-40'",
            "preset COMBO=forward [forward, back, orbit_left, orbit_right, pan_left, pan_right, tilt_up, tilt_down, "
            "dolly_zoom, static]",
            "amount FLOAT=1.0 [0.0, 10.0]",
            "ease COMBO=linear [linear, smooth]",
            "folder STRING=''",
            "convention COMBO=opencv [opencv, opengl]",
            "length INT=81 [1, 4001]",
            "fov FLOAT=0.0 [0.0, 170.0]",
            "max_length INT=0 [0, 4001] optional",
        ],
        ["TURBO_CAMERA", "INT length"],
    ),
    "TurboDiffusionCameraEmbed": (
        [
            "camera TURBO_CAMERA",
            "width INT=832 [16, 8192]",
            "height INT=480 [16, 8192]",
            "control COMBO=cam [cam, act]",
        ],
        ["WAN_CAMERA_EMBEDDING", "IMAGE preview"],
    ),
    "TurboDiffusionCameraCondition": (
        ["positive CONDITIONING", "camera_embed WAN_CAMERA_EMBEDDING", "negative CONDITIONING optional"],
        ["CONDITIONING positive", "CONDITIONING negative"],
    ),
}
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
        listed = {(*files,): "files", ("none", *files): "none, files"} if given.id.endswith("_name") else {}
        text += f" [{listed.get((*values['options'],), ', '.join(values['options']))}]"
    return " ".join([text, *(flag for flag in ("optional", "lazy", "control_after_generate") if values.get(flag))])


def test_every_node_is_in_the_contract():
    assert set(NODES) == set(CONTRACT)


@pytest.mark.parametrize("node_id", CONTRACT)
def test_node_contract(node_id):
    schema = NODES[node_id].define_schema()
    inputs, outputs = CONTRACT[node_id]
    assert [written(given) for given in schema.inputs] == inputs
    assert [" ".join(filter(None, (out.get_io_type(), out.display_name))) for out in schema.outputs] == outputs
    assert schema.category == "TurboDiffusion"
    assert list(inspect.signature(NODES[node_id].execute).parameters) == [given.id for given in schema.inputs]


@pytest.mark.parametrize("node_id", NODES)
def test_a_node_explains_itself(node_id):
    schema = NODES[node_id].define_schema()
    assert schema.description.endswith(".") and schema.search_aliases
    assert schema.display_name.startswith("TurboDiffusion ")
    if schema.is_deprecated:
        return  # stands in for another pack's node in old workflows, and names its inputs as that one does
    for part in (*schema.inputs, *schema.outputs):
        assert part.tooltip and part.tooltip.endswith("."), part
