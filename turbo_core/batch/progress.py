"""The progress of a batch: a line per worker and a total with the time left, or JSON lines."""

import json
import sys
import time
from typing import Any, TextIO

from tqdm import tqdm

from .text import LONGEST, brief

_WORKER_BAR = "{desc}"
_MOST_BARS = 32  # more lines than a terminal shows


class JsonLines:
    """Every event as one JSON object a line, with the time in seconds since 1970."""

    def __init__(self, file: TextIO):
        self._file = file

    def __call__(self, event: dict[str, Any]) -> None:
        self._file.write(json.dumps({"time": round(time.time(), 3)} | event) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Does nothing: the file stays open."""


class Bars:
    """Bars on a terminal; where there is none, a line for each job's end and each worker's change."""

    def __init__(self, total: int, done: int, workers: list[str]):
        disable = None if len(workers) <= _MOST_BARS else True
        self._lines = {
            name: tqdm(bar_format=_WORKER_BAR, position=i, leave=False, disable=disable, dynamic_ncols=True)
            for i, name in enumerate(workers)
        }
        self._total = tqdm(
            total=total,
            initial=done,
            desc="jobs",
            unit="job",
            position=len(workers) if not disable else 0,
            disable=None,
            dynamic_ncols=True,
            smoothing=0,
        )

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "worker":
            self._show(event["worker"], event["state"])
            if event["state"] in ("lost", "given up"):
                self._say(f"{event['worker']} {event['state']}{': ' + event['error'] if 'error' in event else ''}")
        elif kind == "start":
            self._show(event["worker"], f"row {event['row']} {event['job']}")
        elif kind == "progress":
            steps = f" {event['value']}/{event['max']}" if event["max"] else ""
            self._show(event["worker"], f"row {event['row']} {event['job']}: {event['node']}{steps}")
        elif kind == "done":
            self._total.update()
            self._say(f"row {event['row']} {event['job']} done in {event['seconds']:.1f} s on {event['worker']}")
        elif kind in ("retry", "failed"):
            what = "tried again" if kind == "retry" else "failed"
            self._say(f"row {event['row']} {event['job']} {what}: {event['error']}")
            if kind == "failed":
                self._total.update()

    def _show(self, worker: str, text: str) -> None:
        self._lines[worker].set_description_str(brief(f"{worker}: {text}"))

    def _say(self, text: str) -> None:
        tqdm.write(brief(text, LONGEST), file=sys.stderr)

    def close(self) -> None:
        """Removes the bars."""
        for bar in (*self._lines.values(), self._total):
            bar.close()
