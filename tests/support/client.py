"""The batch tool's client of ComfyUI's API, for tests: each call blocks."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from td_pack.turbo_core.batch.client import Client, ExecutionFailed, PromptRejected, Result

__all__ = ["ComfyClient", "ExecutionFailed", "PromptRejected", "Result"]


class ComfyClient:
    """Has the methods of `Client`."""

    def __init__(self, url: str):
        self.url = url

    def __getattr__(self, method: str) -> Callable:
        async def connected(*args, **kwargs):
            async with Client(self.url) as client:
                return await getattr(client, method)(*args, **kwargs)

        def blocking(*args, **kwargs):
            # On a thread of its own: a test calls this from `on_event` too, or while Playwright's loop runs in its
            # thread.
            with ThreadPoolExecutor(max_workers=1) as thread:
                return thread.submit(asyncio.run, connected(*args, **kwargs)).result()

        return blocking

    def run(self, prompt: dict, *args, timeout: float = 300, **kwargs) -> Result:
        """`Client.run`, which a test that hangs would make wait for ever."""
        return self.__getattr__("run")(prompt, *args, timeout=timeout, **kwargs)
