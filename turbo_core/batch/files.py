"""Files that a person names on the command line or in a table: only regular files are opened, of a bounded size."""

import json
import stat
from pathlib import Path

from ..errors import TurboError

MOST_BYTES = 128 << 20  # of a table or a workflow, which are held in memory
MOST_LEVELS = 64  # of nested lists and objects


def is_file(path: Path) -> bool:
    """Whether it is a regular file. False for a name that no file system takes, such as a text in the wrong column."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_text(path: Path) -> str:
    """The UTF-8 text of a file, without a byte order mark. Raises TurboError: a FIFO or a device would block or never
    end."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise TurboError(f"{path} cannot be read (it is not a regular file); check the name.")
        if status.st_size > MOST_BYTES:
            raise TurboError(f"{path} has {status.st_size >> 20} MB, of at most {MOST_BYTES >> 20}; split it.")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TurboError(f"{path} is not UTF-8 text; save it as UTF-8 (in Excel: CSV UTF-8).") from error
    except OSError as error:
        raise TurboError(f"{path} cannot be read ({error.strerror}); check the name.") from error


def parse_json(text: str) -> object:
    """JSON as the standard has it (no NaN, no name twice in an object), nested at most MOST_LEVELS deep. Raises
    ValueError."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level, depth = [value], 0
    while level := [inner for outer in level for inner in _children(outer)]:
        depth += 1
        if depth > MOST_LEVELS:
            raise ValueError("it is nested too deeply")
    return value


def _children(value: object) -> list[object]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in inner if isinstance(item, (dict, list))]


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name occurs twice in an object")
    return values


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value")
