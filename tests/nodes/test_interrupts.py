"""An interrupt while the low expert is read ahead leaves nothing behind. (Interrupts in each phase:
test_failures.py.)"""

import pytest
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.jobs import i2v_job, node, run_held, saved
from td_pack.tests.support.trickle import has_reader, trickle

pytestmark = pytest.mark.server


def test_an_interrupt_while_the_low_expert_is_read_leaks_nothing(server, tmp_path):
    """The low expert is read from a pipe that never ends; the interrupt comes in the second of six high steps, held for
    it."""
    low, pipe = "slow_low.pth", tmp_path / "slow"
    checkpoints.write_pth(
        server.models_dir / "diffusion_models" / low, checkpoints.upstream_state_dict(22, in_channels=36)
    )
    job = i2v_job("overlap", 16, low) | {
        "fault": node("TestFault", any=["model", 0], module="TurboBlock", call=3, what="hold"),
        "slow": node("TestSlowFile", model=["low", 0], pipe=str(pipe)),
    }
    job["sample"]["inputs"] |= {"high": ["fault", 0], "low": ["slow", 0]}
    with trickle(pipe) as begun:

        def interrupt() -> None:
            assert begun.wait(20)
            server.client.interrupt()

        assert run_held(server, job, interrupt).interrupted
        report = server.client.run({"status": node("TurboDiffusionStatus")}).outputs["status"]["text"][0]
        assert "of the low expert read ahead: It was stopped" in report
        held = server.client.run({"process": node("TestProcess")}).outputs["process"]["text"]
        assert held and not [name for name in held if "read-ahead" in name or name.endswith(low)]
        assert not has_reader(pipe)
    server.client.run(i2v_job("after", 4, checkpoints.I2V_LOW))
    assert torch.isfinite(saved(server, "after")).all()
