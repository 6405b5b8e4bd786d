"""A server that does not come up."""

import asyncio
import tempfile

import pytest
from td_pack.turbo_core.batch.local_server import LocalServer, ServerFailed, ServerSettings

HANGS = 60  # seconds
BROKEN = {
    None: "main.py is not there; give this machine's ComfyUI folder with --comfyui",
    "raise SystemExit('no GPU')": "ComfyUI did not start; the end of its log:\nno GPU",
}


@pytest.mark.parametrize("main, said", BROKEN.items(), ids=["no main.py", "it ends"])
def test_a_server_that_does_not_start_says_why_and_leaves_nothing(main, said, tmp_path, monkeypatch):
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    if main is not None:
        (tmp_path / "main.py").write_text(main)
    with pytest.raises(ServerFailed) as error:
        asyncio.run(asyncio.wait_for(LocalServer.start(ServerSettings(str(tmp_path))), HANGS))
    assert said in str(error.value)
    assert not list((tmp_path / "temp").iterdir())
