"""Loading the pack: the time it takes, and that it needs neither triton nor a certain folder name."""

import pytest
from td_pack.tests.support import checkpoints
from td_pack.tests.support.fresh import fresh
from td_pack.tests.support.jobs import saved, t2v_job
from td_pack.tests.support.server import ComfyServer

NO_TRITON = "raise ImportError('triton is not installed (hidden by a test)')\n"

ENTRY = """
import asyncio, gc, importlib
load_pack()
importlib.import_module("td_pack.tests.support.host").load_host()
import comfy.samplers, comfy_extras.nodes_custom_sampler, comfy_extras.nodes_wan, comfy.sd, comfy_api.latest
import folder_paths, execution, server
gc.disable()                        # a collection of the host's whole heap can fall anywhere and costs 0.2 s
before = set(sys.modules)
start = time.process_time()
extension = asyncio.run(sys.modules["td_pack"].comfy_entrypoint())
nodes = asyncio.run(extension.get_node_list())
print(time.process_time() - start, len(nodes), *sorted(set(sys.modules) - before))
"""


def test_entering_the_pack_is_quick_and_imports_no_triton(tmp_path):
    # CPU time of the process alone, of three runs at most: what else a shared machine does only ever adds to it. 0.27
    # to 0.31 s measured on a slow one, the most of it torch's: for the first custom op it looks at the files of all
    # modules.
    runs = (fresh(ENTRY, tmp_path).splitlines()[-1].split() for _ in range(3))
    _, nodes, *modules = next((run for run in runs if float(run[0]) < 0.5), ("too long", 0))
    assert int(nodes) >= 6 and "td_pack.nodes" in modules
    assert not [name for name in modules if "triton" in name.split(".")], "the kernels, or triton itself"
    assert not [name for name in modules if "batch" in name.split(".")], "the batch tool is no part of a server"


@pytest.mark.server
def test_a_machine_without_triton_runs_a_job_from_any_folder(tmp_path):
    hidden = tmp_path / "hidden" / "triton"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text(NO_TRITON)
    base = tmp_path / "comfyui"
    checkpoints.write_models(base / "models")
    environment = {"PYTHONPATH": str(hidden.parent)}
    with ComfyServer(
        base, pack_name="ComfyUI Turbo-main (1)", test_nodes=True, extra_environment=environment
    ) as server:
        server.client.run(t2v_job("without triton"))
        assert saved(server, "without triton").isfinite().all()
