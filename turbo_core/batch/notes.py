"""What one attempt at a job did and when: its progress, its log, its timings."""

import time
from collections.abc import Callable
from typing import Any

from .job import Task
from .text import brief

_STEP = 0.25  # seconds between two progress events of one node
_MOST_LINES = 10_000  # of a log

Emit = Callable[[dict[str, Any]], None]


class Notes:
    """What an attempt did and when: emitted as events, and kept for its log and timings."""

    def __init__(self, task: Task, emit: Emit):
        self._task, self._emit = task, emit
        self._start = self._since = time.monotonic()
        self._emitted = 0.0
        self._node: str | None = None
        self._nodes: dict[str, float] = {}
        self._began: float | None = None
        self._ended: float | None = None
        self._lines: list[str] = []
        self._log(f"attempt {task.attempt}, prompt {task.prompt_id}")

    def take(self, kind: str, data: dict[str, Any]) -> None:
        """Records an event of the server, parsed by `answers`."""
        now = time.monotonic()
        if kind == "execution_start":
            self._began = now
            self._emit({"began": True})
        if kind == "executing":
            self._close_node(now)
            self._node = data["node"]
            if self._node is not None:
                label = self._label(self._node)
                self._log(label)
                self._emit({"node": label, "value": 0, "max": 0})
            else:
                self._emit({"free": True})
        elif kind == "execution_cached" and data["nodes"]:
            self._log(f"cached: {', '.join(map(self._label, data['nodes']))}")
        elif kind == "progress" and (now - self._emitted > _STEP or data["value"] == data["max"]):
            self._emitted = now
            self._emit({"node": self._label(data["node"] or ""), "value": data["value"], "max": data["max"]})
        elif kind == "execution_error":
            self._log("\n".join((f"{data['exception_type']}: {data['exception_message']}", *data["traceback"])))

    def ended(self) -> None:
        """Records the end of the prompt; its files are fetched after it."""
        self._ended = time.monotonic()
        self._close_node(self._ended)

    def _log(self, text: str) -> None:
        if len(self._lines) < _MOST_LINES:
            self._lines.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")

    def _close_node(self, now: float) -> None:
        if self._node is not None:
            label = self._label(self._node)
            self._nodes[label] = round(self._nodes.get(label, 0) + now - self._since, 4)
        self._since = now

    def _label(self, key: str) -> str:
        node = self._task.prompt.get(key) or {}
        return brief(f"{key} {node.get('class_type', '')}".rstrip())

    def timings(self) -> dict[str, Any]:
        """Seconds: in all, waiting in the server's queue, running, fetching, and by node."""
        now = time.monotonic()
        began, ended = self._began or self._start, self._ended or now
        parts = {
            "total": now - self._start,
            "queued": began - self._start,
            "running": ended - began,
            "fetching": now - ended,
        }
        return {name: round(seconds, 4) for name, seconds in parts.items()} | {"nodes": self._nodes}

    def text(self) -> str:
        """The log, a line for each node with its local time."""
        return "\n".join(self._lines) + "\n"
