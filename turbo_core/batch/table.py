"""The list of jobs: rows of named values from CSV or JSONL, times what the command line varies."""

import csv
import io
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import TurboError

_DELIMITERS = ",;\t"
_LONGEST_RANGE = 1_000_000


class RowFault(TurboError):
    """A fault of one row; the plan collects them."""


@dataclass(frozen=True)
class Row:
    """Values by name; `number` counts as a spreadsheet does, with the header as 1 (a JSONL row is its line)."""

    number: int
    values: dict[str, object]


def read_table(path: Path) -> tuple[list[Row], list[tuple[int, str]]]:
    """The rows of a .csv, .tsv or .jsonl file, and the faults found, each with its row. Raises TurboError if it cannot be read
    as a table at all."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TurboError(f"{path} cannot be read ({error.strerror}); check the name.") from error
    except UnicodeDecodeError as error:
        raise TurboError(f"{path} is not UTF-8 text; save it as UTF-8 (in Excel: CSV UTF-8).") from error
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _read_jsonl(text)
    if path.suffix.lower() in (".csv", ".tsv", ".txt"):
        return _read_csv(path, text)
    raise TurboError(f"{path.name} is no job table: give a .csv or a .jsonl file.")


def _read_csv(path: Path, text: str) -> tuple[list[Row], list[tuple[int, str]]]:
    first = re.sub(r'"[^"]*"', "", text.lstrip()).split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(_DELIMITERS, key=first.count), strict=True)
    rows, faults = [], []
    try:
        lines = enumerate(reader, 1)
        header = next((names for _, cells in lines if any(names := [cell.strip() for cell in cells])), None)
        if header is None:
            raise TurboError(f"{path.name} has no header row; name the columns, for example prompt,seed.")
        if twice := {name for name in header if name and header.count(name) > 1}:
            raise TurboError(f"{path.name} names the column {sorted(twice)[0]!r} twice; rename or remove one.")
        for number, cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            if any(cell.strip() for cell in cells[len(header) :]):
                faults.append((number, "it has more cells than the header; quote cells that hold a comma"))
                continue
            # An empty cell leaves the workflow's value.
            rows.append(Row(number, {name: cell for name, cell in zip(header, cells, strict=False) if cell.strip()}))
    except csv.Error as error:
        raise TurboError(f"{path.name} line {reader.line_num} is not sound CSV ({error}); check its quotes.") from error
    if nameless := [row.number for row in rows if "" in row.values]:
        faults += [(number, "it has a value in a column without a name") for number in nameless]
    return rows, faults


def _read_jsonl(text: str) -> tuple[list[Row], list[tuple[int, str]]]:
    rows, faults = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line, object_pairs_hook=_unique)
        except RecursionError:
            faults.append((number, "it is nested too deeply"))
            continue
        except ValueError as error:
            faults.append((number, f"it is not JSON ({error})"))
            continue
        if not isinstance(values, dict):
            faults.append((number, 'it is not a JSON object such as {"prompt": "...", "seed": 1}'))
            continue
        if empty := [name for name, value in values.items() if value == []]:
            faults.append((number, f"its list of {empty[0]!r} is empty; give values, or leave the name out"))
            continue
        rows.append(Row(number, {name: value for name, value in values.items() if value is not None}))
    return rows, faults


def _unique(pairs: list[tuple[str, object]]) -> dict:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name stands in it twice")
    return values


def expand(rows: list[Row], fixed: dict[str, object], varied: dict[str, list]) -> Iterator[Row]:
    """Every row with the `fixed` values it lacks, once for each combination of the `varied` values and of the row's own lists."""
    for row in rows:
        own = {name: value for name, value in row.values.items() if isinstance(value, list)}
        choices = own | varied
        for combination in itertools.product(*choices.values()):
            yield Row(row.number, fixed | row.values | dict(zip(choices, combination, strict=True)))


def parse_setting(text: str) -> tuple[str, str]:
    """NAME=VALUE of the command line."""
    name, equals, value = text.partition("=")
    if not name.strip() or not equals:
        raise TurboError(f"{text!r} is no setting; write NAME=VALUE.")
    return name.strip(), value


def parse_choices(text: str) -> tuple[str, list]:
    """NAME=V1,V2 or NAME=[...] in JSON of the command line."""
    name, value = parse_setting(text)
    if value.lstrip().startswith("["):
        try:
            choices = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise TurboError(f"The list of {name} is not JSON ({error}).") from error
    else:
        choices = [part.strip() for part in value.split(",") if part.strip()]
    if not choices:
        raise TurboError(f"{name} has no values to vary; write {name}=V1,V2.")
    return name, choices


def parse_seeds(text: str) -> list[int]:
    """1-20 or 3,5,8-10."""
    seeds = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,20})\s*(?:-\s*(\d{1,20})\s*)?", part)
        if not match:
            raise TurboError(f"--seeds is {text!r}: write numbers and ranges, for example 1-20 or 3,5,8-10.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= _LONGEST_RANGE:
            raise TurboError(f"--seeds has the range {part.strip()!r}: it must go up, by less than {_LONGEST_RANGE}.")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))
