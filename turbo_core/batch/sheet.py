"""The contact sheet of a batch: one HTML page beside the results, with a strip of frames, the settings and the seconds
of each job."""

import html
import os
from pathlib import Path

from .manifest import DONE, Record

NAME = "index.html"
_STYLE = """
body{font:14px/1.4 system-ui,sans-serif;margin:1.5em;background:#181818;color:#ddd}a{color:#8bc4ff}
article{margin:0 0 1.5em;padding:.8em;background:#222;border-radius:6px}img{max-width:100%;display:block}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1em 1em;margin:.5em 0}
dt{color:#999}dd{margin:0;overflow-wrap:anywhere}
.failed{border-left:4px solid #d55}.pending,.running{border-left:4px solid #b90}.error{color:#f99;white-space:pre-wrap}
"""


def write_sheet(folder: Path, records: list[Record], files: dict[str, list[str]]) -> Path:
    """Writes the page; `files` are the results' file names by job."""
    counts = {
        state: sum(record.state == state for record in records) for state in ("done", "failed", "pending", "running")
    }
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    seconds = sum(record.seconds or 0 for record in records if record.state == DONE)
    body = "\n".join(_article(record, files.get(record.job.id, [])) for record in records)
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><meta charset="utf-8"><title>Batch</title><style>{_STYLE}</style>\n'
        f"<h1>{summary or 'No jobs'}</h1><p>{seconds:.0f} seconds of work in all.</p>\n{body}\n</html>\n"
    )
    path = folder / NAME
    partial = path.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8", errors="backslashreplace")  # settings may hold lone surrogates
    os.replace(partial, path)
    return path


def _article(record: Record, files: list[str]) -> str:
    job, rows = record.job, []
    if record.state == DONE:
        links = " ".join(f'<a href="{job.id}/{html.escape(name)}">{html.escape(name)}</a>' for name in files)
        if files:
            rows.append(
                f'<a href="{job.id}/{html.escape(files[0])}"><img src="{job.id}/strip.jpg" alt="frames" '
                'loading="lazy"></a>'
            )
        rows.append(f'<p>{links} <a href="{job.id}/prompt.json">prompt</a> <a href="{job.id}/log.txt">log</a></p>')
    settings = {
        **job.settings,
        "seconds": f"{record.seconds:.1f}" if record.seconds else "",
        "worker": record.worker or "",
    }
    listed = "".join(
        f"<dt>{html.escape(str(k))}</dt><dd>{html.escape(str(v))}</dd>" for k, v in settings.items() if v != ""
    )
    error = f'<p class="error">{html.escape(record.error)}</p>' if record.error else ""
    place = f"row {job.row}" if job.row else "command line"
    head = f'<article class="{record.state}"><b>{place}</b> {job.id} {record.state}'
    return f"{head}{''.join(rows)}<dl>{listed}</dl>{error}</article>"
