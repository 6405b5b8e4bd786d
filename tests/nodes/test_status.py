"""The status report as a user reads it, from a live server."""

import re

import pytest
from td_pack.tests.support import text_encoders
from td_pack.tests.support.jobs import i2v_job, loader, node

pytestmark = pytest.mark.server


def job(prefix: str, seed: int) -> dict:
    made = i2v_job(prefix, 3, text_encoders.SMALL_LOW)
    made["sample"]["inputs"]["seed"] = seed
    text = node("TurboDiffusionTextEncode", encoder_name=text_encoders.SMALL, text="a red disc", cache=False)
    decode = node("TurboDiffusionVAEDecode", samples=["sample", 0], vae=["vae", 0])
    status = node("TurboDiffusionStatus", any=["decode", 0])
    del made["save"]  # ComfyUI executes first what an output node is two links away from
    return made | {"model": loader(text_encoders.SMALL_HIGH), "text": text, "decode": decode, "status": status}


def test_the_report_tells_the_machine_the_models_and_the_last_run(text_server):
    order = []
    result = text_server.client.run(
        job("status", 31), on_event=lambda kind, data: order.append(data["node"]) if kind == "executing" else None
    )
    assert order.index("model") < order.index("text"), "the loader comes first, so that its file is read meanwhile"
    (report,) = result.outputs["status"]["text"]
    for title in ("Machine", "Operators", "Loaded models", "Memory of the published models", "Last run"):
        assert re.search(rf"^{title}", report, re.MULTILINE), report
    assert f"{text_encoders.SMALL_LOW}: TurboWan I2V" in report and "(measured)" in report
    assert re.search(r"a step of 81 frames .* at 480p, .* at 720p \(estimate, which ComfyUI reserves\)", report), report
    assert "  3 steps (2 high, 1 low)\n" in report
    for phase in ("text encode", "load", "high", "switch", "low", "decode"):
        assert re.search(rf"\b{phase} \d+\.\d s", report), phase
    for file in (text_encoders.SMALL_HIGH, text_encoders.SMALL_LOW):
        assert re.search(rf"(\d+ MB) of \1 of {file} read ahead\n", report), file
    assert "high: network 2, sparse attention 0, dense attention 4, int8 linear 0, float linear 40" in report

    (again,) = text_server.client.run(job("status", 32)).outputs["status"]["text"]  # ComfyUI kept the encoded text
    assert "3 steps" in again and "text encode" not in again and f"{text_encoders.SMALL_HIGH} read" not in again


def test_without_a_run_it_reports_the_machine(server):
    report = server.client.run({"status": node("TurboDiffusionStatus")}).outputs["status"]["text"][0]
    assert report.splitlines()[0].startswith(("Fast: ", "Slow: "))
    assert "int8 weights that suit this device (weights of TurboDiffusion Convert): int8_block: more exact" in report
    assert "I2V A14B, each expert, in int8 and bf16: weights 14.5 GB and 28.6 GB" in report
