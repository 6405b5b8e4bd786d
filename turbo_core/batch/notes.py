"""What one attempt at a job did and when: its progress, its log, its timings."""

import time

from .job import Task

_STEP = 0.25  # seconds between two progress events of one node


class Notes:
    """What an attempt did and when, told on and kept for its log and timings."""

    def __init__(self, task: Task, tell):
        self._task, self._tell = task, tell
        self._start = self._since = time.monotonic()
        self._told, self._node, self._nodes = 0.0, None, {}
        self._began = self._ended = None
        self._lines = [f"{_clock()} attempt {task.attempt}, prompt {task.prompt_id}"]

    def take(self, kind: str, data: dict) -> None:
        now = time.monotonic()
        if kind == "execution_start":
            self._began = now
            self._tell({"began": True})
        if kind == "executing":
            self._close_node(now)
            self._node = data["node"]
            if self._node is not None:
                label = self._label(self._node)
                self._lines.append(f"{_clock()} {label}")
                self._tell({"node": label, "value": 0, "max": 0})
            else:
                self._tell({"free": True})
        elif kind == "execution_cached" and data["nodes"]:
            self._lines.append(f"{_clock()} kept from before: {', '.join(map(self._label, data['nodes']))}")
        elif kind == "progress" and (now - self._told > _STEP or data["value"] == data["max"]):
            self._told = now
            self._tell({"node": self._label(data["node"]), "value": data["value"], "max": data["max"]})
        elif kind == "execution_error":
            self._lines += [
                f"{_clock()} {data['exception_type']}: {data['exception_message']}",
                *data.get("traceback", ()),
            ]

    def ended(self) -> None:
        self._ended = time.monotonic()
        self._close_node(self._ended)

    def _close_node(self, now: float) -> None:
        if self._node is not None:
            label = self._label(self._node)
            self._nodes[label] = round(self._nodes.get(label, 0) + now - self._since, 4)
        self._since = now

    def _label(self, key: str) -> str:
        node = self._task.prompt.get(key) or {}
        return f"{key} {node.get('class_type', '')}".rstrip()

    def timings(self) -> dict:
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
        return "\n".join(self._lines) + "\n"


def _clock() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
