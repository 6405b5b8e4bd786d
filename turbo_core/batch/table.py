"""The list of jobs: rows of named values from CSV or JSONL, times what the command line varies."""

import csv
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import TurboError
from .files import parse_json, read_text
from .text import brief

MOST_JOBS = 100_000
_DELIMITERS = ",;\t"
_MOST_CELL = 1 << 20  # characters
_MOST_SHOWN = 500  # characters of a fault


class RowFault(TurboError):
    """A fault of one row; the plan collects them."""

    def __init__(self, message: str):
        super().__init__(brief(message, _MOST_SHOWN))


@dataclass(frozen=True)
class Row:
    """Values by name; `number` counts as a spreadsheet does, with the header as 1 (a JSONL row is its line)."""

    number: int
    values: dict[str, object]


def read_table(path: Path, most: int = MOST_JOBS) -> tuple[list[Row], list[tuple[int, str]]]:
    """The rows of a .csv, .tsv or .jsonl file, and the faults found, each with its row. Raises TurboError if it cannot
    be read as a table at all, or has more than `most` rows."""
    text, suffix = read_text(path), path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        found: Iterator[Row | tuple[int, str]] = _read_jsonl(text)
    elif suffix in (".csv", ".tsv", ".txt"):
        found = _read_csv(path, text)
    else:
        raise TurboError(f"{path.name} is not a job table: give a .csv or a .jsonl file.")
    rows: list[Row] = []
    faults: list[tuple[int, str]] = []
    for item in found:
        if isinstance(item, Row):
            rows.append(item)
        else:
            faults.append((item[0], brief(item[1], _MOST_SHOWN)))
        if len(rows) + len(faults) > most:
            raise too_many(f"{path.name} has", most)
    return rows, faults


def too_many(what: str, most: int) -> TurboError:
    """The error for more jobs than the limit."""
    return TurboError(f"{what} more than {most:,} jobs, which is the limit; split the table, or raise --max-jobs.")


def _read_csv(path: Path, text: str) -> Iterator[Row | tuple[int, str]]:
    first = re.sub(r'"[^"]*"', "", text.lstrip().split("\n", 1)[0])
    csv.field_size_limit(_MOST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(_DELIMITERS, key=first.count), strict=True)
    try:
        lines = enumerate(reader, 1)
        header = next((names for _, cells in lines if any(names := [cell.strip() for cell in cells])), None)
        if header is None:
            raise TurboError(f"{path.name} has no header row; name the columns, for example prompt,seed.")
        if twice := [name for name, count in Counter(header).items() if name and count > 1]:
            raise TurboError(f"{path.name} names the column {min(twice)!r} twice; rename or remove one.")
        for number, cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if any(cell.strip() for cell in cells[len(header) :]):
                yield number, "it has more cells than the header; quote cells that hold a comma"
                continue
            # An empty cell leaves the workflow's value.
            row = Row(number, {name: cell for name, cell in zip(header, cells, strict=False) if cell.strip()})
            yield row
            if "" in row.values:
                yield number, "it has a value in a column without a name"
    except csv.Error as error:
        raise TurboError(f"{path.name} line {reader.line_num} is not valid CSV ({error}); check its quotes.") from error


def _read_jsonl(text: str) -> Iterator[Row | tuple[int, str]]:
    for number, line in enumerate(io.StringIO(text, newline="\n"), 1):
        if not line.strip():
            continue
        try:
            values = parse_json(line)
        except ValueError as error:
            yield number, f"it is not JSON ({error})"
            continue
        if not isinstance(values, dict):
            yield number, 'it is not a JSON object such as {"prompt": "...", "seed": 1}'
        elif empty := [name for name, value in values.items() if value == []]:
            yield number, f"its list of {empty[0]!r} is empty; give values, or leave the name out"
        else:
            yield Row(number, {name: value for name, value in values.items() if value is not None})


def count_jobs(rows: Iterable[Row], varied: Mapping[str, Sequence[object]], repeat: int) -> int:
    """How many jobs `expand` and --repeat make of these rows, without making them."""
    common = repeat * math.prod(map(len, varied.values()))
    return sum(
        common
        * math.prod(len(value) for name, value in row.values.items() if isinstance(value, list) and name not in varied)
        for row in rows
    )


def expand(rows: Iterable[Row], fixed: Mapping[str, object], varied: Mapping[str, Sequence[object]]) -> Iterator[Row]:
    """Every row with the `fixed` values it lacks, once for each combination of the `varied` values and of the row's own
    lists."""
    for row in rows:
        choices: dict[str, Sequence[object]] = {
            name: value for name, value in row.values.items() if isinstance(value, list)
        }
        choices |= varied
        for combination in itertools.product(*choices.values()):
            yield Row(row.number, {**fixed, **row.values, **dict(zip(choices, combination, strict=True))})


def parse_setting(text: str) -> tuple[str, str]:
    """NAME=VALUE of the command line."""
    name, equals, value = text.partition("=")
    if not name.strip() or not equals:
        raise TurboError(f"{text!r} is not a setting; write NAME=VALUE.")
    return name.strip(), value


def parse_choices(text: str) -> tuple[str, list[object]]:
    """NAME=V1,V2 or NAME=[...] in JSON of the command line."""
    name, value = parse_setting(text)
    if value.lstrip().startswith("["):
        try:
            choices = parse_json(value)
        except ValueError as error:
            raise TurboError(f"The list of {name} is not JSON ({error}).") from error
    else:
        choices = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(choices, list) or not choices:
        raise TurboError(f"{name} has no values to vary; write {name}=V1,V2.")
    return name, choices


def parse_seeds(text: str, most: int = MOST_JOBS) -> list[int]:
    """1-20 or 3,5,8-10. Raises TurboError, also where there are more than `most`."""
    ranges, count = [], 0
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,20})\s*(?:-\s*(\d{1,20})\s*)?", part, re.ASCII)
        if not match:
            raise TurboError(f"--seeds is {brief(repr(text))}: write numbers and ranges, for example 1-20 or 3,5,8-10.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise TurboError(f"--seeds has the range {part.strip()!r}: it must go up.")
        ranges.append(range(first, last + 1))
        count += last - first + 1
        if count > most:
            raise too_many("--seeds makes", most)
    return list(dict.fromkeys(itertools.chain.from_iterable(ranges)))
