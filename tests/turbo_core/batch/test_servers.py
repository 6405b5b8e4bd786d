"""Addresses of servers, and what answers there without being a ComfyUI."""

import http.server
import json
import threading

import pytest
from td_pack.turbo_core.batch.cli import main


class NotComfyUI(http.server.BaseHTTPRequestHandler):
    """Answers /system_stats, and anything else with an error."""

    def do_GET(self):
        self.send_response(200 if self.path.endswith("/system_stats") else 500)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def port():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotComfyUI) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def batch(tmp_path, capsys):
    workflow = tmp_path / "workflow.json"
    workflow.write_text(json.dumps({"1": {"class_type": "PreviewAny", "inputs": {}}}))

    def run(*servers: str) -> str:
        where = [word for server in servers for word in ("--server", server)]
        assert main(["--workflow", str(workflow), "--repeat", "2", "--out", str(tmp_path / "out"), *where]) == 2
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:{}", "127.0.0.1:{}", " HTTP://127.0.0.1:{}/ ", "127.0.0.1:{}/base/"]
)
def test_a_server_that_is_no_comfyui_is_named_however_its_address_is_written(batch, port, address):
    base = "/base" if "base" in address else ""
    said = batch(address.format(port))
    assert f"http://127.0.0.1:{port}{base} does not say what nodes it has (500" in said and said.count("\n") == 1


@pytest.mark.parametrize("address", ["", "http://", "ftp://127.0.0.1", "file:///etc"])
def test_what_is_no_address_is_refused(batch, address):
    said = batch(address)
    assert said == f"batch: --server is {address!r}: give an address such as http://127.0.0.1:8188.\n"


@pytest.mark.parametrize("address", ["http://[::1", "http://127.0.0.1:99999", f"http://{'a' * 300}"])
def test_an_address_that_leads_nowhere_does_not_answer(batch, address):
    assert batch(address) == f"batch: {address} does not answer; is ComfyUI running there?\n"
