"""Nodes that make a chosen phase of a later node fail, or hold it until the client has done something to the server."""

import gc
import time

import comfy.model_management
import torch
from comfy.text_encoders.t5 import T5
from comfy_api.latest import io, ui
from server import PromptServer

HELD = "test_held"  # the event that tells the client a phase is held
_LONGEST = 30.0  # seconds to hold
WHAT = ["oom", "hold"]


def strike(what: str) -> None:
    """Runs out of memory, or waits for an interrupt, for /free, or for another prompt in the queue."""
    if what == "oom":
        raise torch.OutOfMemoryError("Allocation on device (made to fail by a test)")
    server = PromptServer.instance
    queue = server.prompt_queue
    server.send_sync(HELD, {"prompt_id": server.last_prompt_id}, server.client_id)
    end = time.monotonic() + _LONGEST
    while not (comfy.model_management.processing_interrupted() or queue.get_flags(reset=False) or queue.queue):
        if time.monotonic() > end:
            raise TimeoutError("nobody did anything to the server")
        time.sleep(0.01)


class TestFault(io.ComfyNode):
    """Passes its input on; the `call`-th time that any module of class `module` runs from then on, the fault strikes once."""

    _armed = None

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestFault",
            display_name="Test Fault",
            category="tests",
            inputs=[
                io.AnyType.Input("any"),
                io.String.Input("module"),
                io.Int.Input("call", default=1),
                io.Combo.Input("what", options=WHAT),
            ],
            outputs=[io.AnyType.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, **_):
        return float("nan")

    @classmethod
    def execute(cls, any, module: str, call: int, what: str) -> io.NodeOutput:
        if TestFault._armed is not None:
            TestFault._armed.remove()
        left = call

        def before(called, _):
            nonlocal left
            if type(called).__name__ != module:
                return
            left -= 1
            if left == 0:
                TestFault._armed.remove()
                strike(what)

        TestFault._armed = torch.nn.modules.module.register_module_forward_pre_hook(before)
        return io.NodeOutput(any)


class TestLoadFault(io.ComfyNode):
    """A model whose loading onto the device meets the fault."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestLoadFault",
            display_name="Test Load Fault",
            category="tests",
            inputs=[io.Model.Input("model"), io.Combo.Input("what", options=WHAT)],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, **_):
        return float("nan")

    @classmethod
    def execute(cls, model, what: str) -> io.NodeOutput:
        model = model.clone()
        # What is among a model's patches is moved to the device along with it; nothing calls a patch of this name.
        model.set_model_patch(_Patch(what), "test_load_fault")
        return io.NodeOutput(model)


class _Patch:
    def __init__(self, what: str):
        self._what = what

    def to(self, device_or_dtype):
        if self._what:
            what, self._what = self._what, None
            strike(what)
        return self


class TestResident(io.ComfyNode):
    """The models that ComfyUI has loaded, and how many text encoders exist at all."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestResident",
            display_name="Test Resident",
            category="tests",
            inputs=[io.AnyType.Input("any", optional=True)],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **_):
        return float("nan")

    @classmethod
    def execute(cls, any=None) -> io.NodeOutput:
        loaded = [type(entry.model.model).__name__ for entry in comfy.model_management.current_loaded_models]
        encoders = sum(isinstance(thing, T5) for thing in gc.get_objects())
        return io.NodeOutput(ui=ui.PreviewText(f"{encoders} text encoders; loaded: {', '.join(loaded)}"))


NODES = [TestFault, TestLoadFault, TestResident]
