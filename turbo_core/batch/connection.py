"""Bounded HTTP to one server: every answer has a limit of time and of bytes."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from .answers import BadAnswer, decode

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10)
_CLOSE_SECONDS = 2.0  # for the other end to agree that a websocket is closed
_REFUSING = (401, 403, 405, 407)  # statuses with which a server or its proxy refuses us, whatever the job


@dataclass(frozen=True)
class Limits:
    """The limits of a server's answers. Each has `seconds`, and one second more for every `slowest` bytes."""

    seconds: float = 60.0
    start_seconds: float = 30.0  # until GET /system_stats is answered
    info_seconds: float = 120.0  # for /object_info, which reads every model folder
    slowest: float = 65536.0  # bytes a second
    answer_bytes: int = 32 << 20  # of JSON, and of a websocket message
    result_bytes: int = 1 << 30  # of all files of a job, which are held in memory
    lost_seconds: float = 10.0  # for which a broken connection to a prompt is made again


class TooSlow(aiohttp.ClientError):
    """An answer did not come, or not fast enough."""


class TooLarge(Exception):
    """The server announced a file beyond the limit."""


class Connection:
    """An asynchronous context manager around a session with one server.

    It asks for uncompressed answers and does not decompress others, so that a small body cannot become a large one."""

    def __init__(self, url: str, limits: Limits):
        self.url, self.limits = url.rstrip("/"), limits

    async def __aenter__(self) -> "Connection":
        headers = {"Accept-Encoding": "identity"}
        self._session = aiohttp.ClientSession(timeout=_TIMEOUT, auto_decompress=False, headers=headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def is_answering(self, path: str) -> bool:
        """Whether GET on that path has a good status; its body is not read."""
        try:
            answer = await asyncio.wait_for(self._open("GET", path), self.limits.start_seconds)
        except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError):  # ValueError: not an address
            return False
        answer.close()
        return answer.status < 300

    async def get(self, path: str, most: int | None = None, seconds: float | None = None) -> bytes:
        """The body of a GET. Raises aiohttp.ClientError, TooLarge, BadAnswer."""
        return (await self.request("GET", path, most, seconds))[1]

    async def get_json(self, path: str, seconds: float | None = None) -> Any:
        """The JSON of a GET."""
        return decode(await self.get(path, seconds=seconds), path.partition("?")[0])

    async def request(
        self,
        method: str,
        path: str,
        most: int | None = None,
        seconds: float | None = None,
        accepted: tuple[int, ...] = (),
        sent_bytes: int = 0,
        **body: Any,
    ) -> tuple[int, bytes]:
        """Status and body. Statuses from 400 on raise unless they are `accepted`; `sent_bytes` of a body allow for more
        time."""
        most, seconds = most or self.limits.answer_bytes, seconds or self.limits.seconds
        end = time.monotonic() + seconds + sent_bytes / self.limits.slowest
        try:
            answer = await asyncio.wait_for(self._open(method, path, **body), end - time.monotonic())
            async with answer:
                self._check_status(answer, path, accepted)
                return answer.status, await self._read(answer, path, most, end)
        except asyncio.TimeoutError:
            raise TooSlow(f"{path.partition('?')[0]} was not answered in time") from None

    async def _open(self, method: str, path: str, **body: Any) -> aiohttp.ClientResponse:
        return await self._session.request(method, self.url + path, allow_redirects=False, **body)

    @staticmethod
    def _check_status(answer: aiohttp.ClientResponse, path: str, accepted: tuple[int, ...]) -> None:
        if 300 <= answer.status < 400:
            raise BadAnswer(f"{path} is redirected to {answer.headers.get('Location')}; give the address it leads to")
        if answer.status in _REFUSING:
            raise BadAnswer(f"{path} is refused with status {answer.status}")
        if answer.status not in accepted:
            answer.raise_for_status()

    async def _read(self, answer: aiohttp.ClientResponse, path: str, most: int, end: float) -> bytes:
        place = path.partition("?")[0]
        if (answer.content_length or 0) > most:
            raise TooLarge(f"{place} has {answer.content_length} bytes, of at most {most}")
        body = bytearray()
        while True:
            left = end + len(body) / self.limits.slowest - time.monotonic()
            chunk = await asyncio.wait_for(answer.content.readany(), max(left, 0))
            if not chunk:
                return bytes(body)
            body += chunk
            if len(body) > most:
                raise BadAnswer(f"{place} does not end within {most} bytes")

    @contextlib.asynccontextmanager
    async def websocket(self, path: str, heartbeat: float) -> AsyncIterator["aiohttp.ClientWebSocketResponse[bool]"]:
        """A websocket, closed at the end. Raises aiohttp.ClientError."""
        try:
            socket = await asyncio.wait_for(self._connect(path, heartbeat), self.limits.seconds)
        except asyncio.TimeoutError:
            raise TooSlow("/ws was not answered in time") from None
        async with socket:
            yield socket

    async def _connect(self, path: str, heartbeat: float) -> "aiohttp.ClientWebSocketResponse[bool]":
        return await self._session.ws_connect(
            self.url.replace("http", "ws", 1) + path,
            heartbeat=heartbeat,
            max_msg_size=self.limits.answer_bytes,
            timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_SECONDS),
        )
