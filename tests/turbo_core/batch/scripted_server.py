"""A web server that implements ComfyUI's protocol for one job at a time, except where a test gives it another
answer."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable, Callable, Iterator

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
NODES = {
    "Save": {
        "input": {"required": {"seed": ["INT", {"min": 0, "max": 1000}], "text": ["STRING", {}]}, "optional": {}},
        "output": ["INT"],
        "output_node": True,
    }
}
WORKFLOW = {"1": {"class_type": "Save", "inputs": {"seed": 0, "text": "a fox"}}}


def comfy_answers(prompt_id: str) -> dict[str, object]:
    """What ComfyUI answers by path, after a prompt ended."""
    files = [{"filename": "a.mp4", "subfolder": "", "type": "output"}]
    return {
        "/system_stats": {},
        "/object_info": NODES,
        "/queue": {"queue_running": [], "queue_pending": []},
        "/history": {prompt_id: {"outputs": {"1": {"images": files}}, "status": {"messages": []}}},
        "/prompt": {"prompt_id": prompt_id, "number": 1, "node_errors": {}},
        "/view": "a video",
        "/ws": {"type": "executing", "data": {"node": None, "prompt_id": prompt_id}},
    }


class ScriptedServer:
    """`answers` maps the first part of a path to a handler, or to text that stands for the answer or websocket
    message."""

    def __init__(self, **answers: Handler | str):
        self.answers = {f"/{name}": answer for name, answer in answers.items()}
        self.asked: list[str] = []
        self._queued = ""
        self._has_queued = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = "/" + request.path.split("/")[1]
        self.asked.append(path)
        answer = self.answers.get(path)
        if request.method == "POST" and path == "/prompt":
            self._queued = (await request.json()).get("prompt_id", "PROMPT_ID")
            self._has_queued.set()
        if callable(answer):
            return await answer(request)
        if path == "/ws":
            return await self._talk(request, answer)
        if answer is None and path == "/history" and not request.path.endswith(self._queued or "?"):
            answer = "{}"
        if answer is None:
            answer = json.dumps(comfy_answers(self._queued).get(path, {}))
        return web.Response(body=answer.encode("utf-8", "surrogatepass"), content_type="application/json")

    async def _talk(self, request: web.Request, answer: str | None) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        closed = asyncio.ensure_future(socket.receive())
        queued = asyncio.ensure_future(self._has_queued.wait())
        await asyncio.wait({closed, queued}, return_when=asyncio.FIRST_COMPLETED)
        queued.cancel()
        self._has_queued.clear()
        message = answer or json.dumps(comfy_answers(self._queued)["/ws"])
        with contextlib.suppress(ConnectionError):
            await socket.send_str(message.replace("PROMPT_ID", self._queued))
        await closed
        return socket


@contextlib.contextmanager
def served(*servers: ScriptedServer) -> Iterator[list[str]]:
    """Runs the servers in a thread, and yields their addresses."""
    started, loop, urls = threading.Event(), asyncio.new_event_loop(), []
    stopping = asyncio.Event()

    async def serve() -> None:
        runners = []
        for server in servers:
            app = web.Application(client_max_size=1 << 30)
            app.router.add_route("*", "/{path:.*}", server.handle)
            runners.append(web.AppRunner(app, shutdown_timeout=0.1))
            await runners[-1].setup()
            site = web.TCPSite(runners[-1], "127.0.0.1", 0)
            await site.start()
            urls.append(f"http://127.0.0.1:{runners[-1].addresses[0][1]}")
        started.set()
        await stopping.wait()
        for runner in runners:
            await runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(30)
    try:
        yield urls
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
        loop.close()
