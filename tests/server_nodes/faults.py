"""Nodes that make a chosen phase of a later node run out of memory, or hold it until the client has acted."""

import gc
import importlib
import time

import comfy.model_management
import torch
from comfy.text_encoders.t5 import T5
from comfy_api.latest import io, ui
from server import PromptServer

from .schema import NeverCached

HELD = "test_held"  # the event that tells the client a phase is held
_LONGEST = 30.0  # seconds to hold
WHAT = ["oom", "hold"]


def strike(what: str) -> None:
    """Raises OutOfMemoryError, or waits for an interrupt, for /free or for another prompt in the queue."""
    if what == "oom":
        raise torch.OutOfMemoryError("Allocation on device (made to fail by a test)")
    server = PromptServer.instance
    queue = server.prompt_queue
    server.send_sync(HELD, {"prompt_id": server.last_prompt_id}, server.client_id)
    end = time.monotonic() + _LONGEST
    while not (comfy.model_management.processing_interrupted() or queue.get_flags(reset=False) or queue.queue):
        if time.monotonic() > end:
            raise TimeoutError("the client did not act within 30 s")
        time.sleep(0.01)


class TestFault(NeverCached):
    """Passes its input on and makes the call number `call` of any module of class `module` fail or wait, once."""

    _armed = None

    INPUTS = [
        io.AnyType.Input("any"),
        io.String.Input("module"),
        io.Int.Input("call", default=1),
        io.Combo.Input("what", options=WHAT),
    ]
    OUTPUTS = [io.AnyType.Output()]

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


class TestLoadFault(NeverCached):
    """A model that fails or waits, once, while it is loaded onto the device."""

    INPUTS = [io.Model.Input("model"), io.Combo.Input("what", options=WHAT)]
    OUTPUTS = [io.Model.Output()]

    @classmethod
    def execute(cls, model, what: str) -> io.NodeOutput:
        model = model.clone()
        # ComfyUI moves a model's patches to the device with the model, and calls none of this name.
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


class TestResident(NeverCached):
    """Shows the models that ComfyUI has loaded and the number of text encoders in memory."""

    INPUTS = [io.AnyType.Input("any", optional=True)]
    MORE = {"is_output_node": True}

    @classmethod
    def execute(cls, any=None) -> io.NodeOutput:
        loaded = [type(entry.model.model).__name__ for entry in comfy.model_management.current_loaded_models]
        encoders = sum(isinstance(thing, T5) for thing in gc.get_objects())
        return io.NodeOutput(ui=ui.PreviewText(f"{encoders} text encoders; loaded: {', '.join(loaded)}"))


class TestBusyCompiler(NeverCached):
    """Waits for kernels as a pass of the model does, while a compiler of its own is busy for so many seconds."""

    INPUTS = [io.Model.Input("model"), io.Float.Input("seconds", default=1.0)]
    OUTPUTS = [io.AnyType.Output()]

    @classmethod
    def execute(cls, model, seconds: float) -> io.NodeOutput:
        pack = type(model.model).__module__.split(".turbo_core.")[0]
        ahead = importlib.import_module(f"{pack}.turbo_core.host.kernels_ahead")
        chip = importlib.import_module(f"{pack}.kernels.launch").Chip((8, 0))
        compiler = ahead.BackgroundCompiler(torch.device("cpu"), chip)
        compiler.add([lambda: time.sleep(seconds)])
        ahead.wait_for(compiler)
        return io.NodeOutput(model)


NODES = [TestFault, TestLoadFault, TestResident, TestBusyCompiler]
