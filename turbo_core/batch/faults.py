"""What a plan reports: each fault once with the rows that have it, and rows that ask for a job another row has."""

from collections.abc import Iterator

_MOST_LINES = 100  # of a report
_MOST_RANGES = 8  # of rows in one line


class Faults:
    """The faults of a plan. `count` counts rows times faults."""

    def __init__(self) -> None:
        self._rows: dict[str, list[int]] = {}
        self.count = 0

    def add(self, row: int, fault: str) -> None:
        """Adds a fault of a row; rows come in order, and one row may be expanded to several jobs with the same
        fault."""
        rows = self._rows.setdefault(fault, [])
        if not rows or rows[-1] != row:
            rows.append(row)
            self.count += 1

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """(row, fault), by row."""
        return iter(sorted((row, fault) for fault, rows in self._rows.items() for row in rows))

    def lines(self) -> list[str]:
        """A line for each fault, those of the first rows first."""
        ordered = sorted(self._rows.items(), key=lambda item: min(item[1]))
        lines = [f"{place(*sorted(rows))}: {fault}" for fault, rows in ordered[:_MOST_LINES]]
        return lines + _rest(len(ordered), "faults")


class Doubles:
    """Rows that ask for a job that another row has."""

    def __init__(self) -> None:
        self._first: list[tuple[int, int]] = []
        self._count = 0

    def add(self, row: int, first: int) -> None:
        self._count += 1
        if self._count <= _MOST_LINES:
            self._first.append((row, first))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(row, the row that has the job), of the first rows."""
        return iter(self._first)

    def lines(self) -> list[str]:
        """A line for each of the first rows, and the number of the others."""
        lines = [f"{place(row)}: the same video as {place(first)}; it is made once" for row, first in self._first]
        return lines + _rest(self._count, "rows that another row equals")


def _rest(count: int, what: str) -> list[str]:
    return [f"and {count - _MOST_LINES:,} more {what}"] if count > _MOST_LINES else []


def place(*rows: int) -> str:
    """`row 2`, `rows 2-9, 12`: rows as messages name them, given in ascending order. Row 0 is the command line."""
    if rows == (0,):
        return "command line"
    ranges: list[list[int]] = []
    for row in rows:
        if ranges and row == ranges[-1][1] + 1:
            ranges[-1][1] = row
        else:
            ranges.append([row, row])
    shown = ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in ranges[:_MOST_RANGES])
    more = f" and {sum(b - a + 1 for a, b in ranges[_MOST_RANGES:]):,} more" if len(ranges) > _MOST_RANGES else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"
