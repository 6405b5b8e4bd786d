"""Text for people: bounded, and writable to any terminal."""

import sys
from typing import TextIO

LONGEST = 2000  # characters of one message; a terminal of 80 columns shows about 25 lines of them


def brief(value: object, limit: int = 200) -> str:
    """A text, or the repr of another value, of at most `limit` characters: the middle is left out. Surrogates, which no
    encoding can write, become escapes."""
    text = value if isinstance(value, str) else repr(value)
    if len(text) > limit:
        text = f"{text[: limit - limit // 4 - 5]} ... {text[-(limit // 4) :]}"
    return encodable(text)


def encodable(text: str) -> str:
    """The text with lone surrogates as escapes: UTF-8, HTTP and SQLite cannot hold them."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_line(file: TextIO, text: str) -> None:
    """Writes a line; characters that the file's encoding lacks become escapes."""
    encoding = getattr(file, "encoding", None) or "utf-8"
    file.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    file.flush()


def say(text: str) -> None:
    """Writes one bounded message to stderr."""
    write_line(sys.stderr, brief(text, LONGEST))
