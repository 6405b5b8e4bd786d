"""Where files are looked for and where new ones go, compared with ComfyUI's own reading of its configuration."""

from pathlib import Path

import folder_paths
import pytest
from td_pack.turbo_core.download.catalog import TEMPLATES, files_of
from td_pack.turbo_core.download.folders import Folders
from td_pack.turbo_core.errors import TurboError
from utils.extra_config import load_extra_path_config


@pytest.mark.parametrize("first", [False, True])
def test_folders_are_those_of_comfyui(tmp_path, monkeypatch, first):
    configuration = tmp_path / "extra_model_paths.yaml"
    configuration.write_text(
        f"a:\n  base_path: other\n  is_default: {first}\n  unet: |\n    unet\n    sub/../diffusion\n  vae: vae\n"
        "b:\nc:\n  clip: ./clips\n"
    )
    own = {
        kind: ([str(tmp_path / "models" / name) for name in names], {".pth"})
        for kind, names in (
            ("diffusion_models", ("unet", "diffusion_models")),
            ("text_encoders", ("text_encoders", "clip")),
            ("vae", ("vae",)),
            ("vae_approx", ("vae_approx",)),
        )
    }
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", own)
    load_extra_path_config(str(configuration))
    ours = Folders(tmp_path / "models", configuration)
    for kind in own:
        found = folder_paths.get_folder_paths(kind)
        assert set(map(str, ours._folders[kind])) == set(found)
        configured_first = str(tmp_path / "models") not in found[0]
        assert configured_first == (str(tmp_path / "models") not in str(ours.new(kind, "x"))), kind
    file = tmp_path / "other" / "diffusion" / "x.pth"
    file.parent.mkdir(parents=True)
    file.touch()
    assert ours.find("diffusion_models", "x.pth") == file and ours.find("vae", "x.pth") is None


@pytest.mark.parametrize("model", TEMPLATES)
def test_the_files_of_a_template_go_where_comfyui_looks(model):
    ours = Folders(Path(folder_paths.models_dir))
    for file in files_of(model):
        assert str(ours.new(file.folder, "x").parent) in folder_paths.get_folder_paths(file.folder)


@pytest.mark.parametrize("text", ["a: [", "a: 3", "a:\n  vae: 3"])
def test_a_broken_configuration_is_named(tmp_path, text):
    configuration = tmp_path / "extra_model_paths.yaml"
    configuration.write_text(text)
    with pytest.raises(TurboError, match="cannot be read .*correct it, or give --models"):
        Folders(tmp_path, configuration)
