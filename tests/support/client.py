"""The batch tool's client of ComfyUI's API, for tests: each call blocks."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from td_pack.turbo_core.batch.client import Client, ExecutionFailed, PromptRejected, Result

__all__ = ["ComfyClient", "ExecutionFailed", "PromptRejected", "Result"]


class ComfyClient:
    def __init__(self, url: str):
        self.url = url

    def get(self, path: str) -> bytes:
        return self._do(lambda client: client.get(path))

    def post(self, path: str, data: dict) -> dict:
        return self._do(lambda client: client.post(path, data))

    def is_ready(self) -> bool:
        return self._do(lambda client: client.is_ready())

    def object_info(self, node: str | None = None) -> dict:
        """What the server knows of every node, or of one."""
        return self._do(lambda client: client.object_info(node))

    def queue(self, prompt: dict, client_id: str | None = None) -> str:
        """Queues an API-format prompt and returns its id."""
        return self._do(lambda client: client.queue(prompt, client_id))

    def run(
        self,
        prompt: dict,
        on_event: Callable[[str, dict], None] | None = None,
        timeout: float = 300,
        check: bool = True,
    ) -> Result:
        """Queues the prompt and follows it to its end. With `check` a node's error raises ExecutionFailed."""
        return self._do(lambda client: client.run(prompt, on_event, timeout, check))

    def interrupt(self) -> None:
        """Stops the prompt that is running."""
        self._do(lambda client: client.interrupt())

    def view(self, file: dict) -> bytes:
        """Downloads one of `Result.files`."""
        return self._do(lambda client: client.view(file))

    def _do(self, call: Callable):
        async def connected():
            async with Client(self.url) as client:
                return await call(client)

        # On a thread of its own: a test calls this from `on_event` too, or while Playwright's loop runs in its thread.
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(asyncio.run, connected()).result()
