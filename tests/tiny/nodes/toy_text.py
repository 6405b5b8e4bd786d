"""The stand-in for umT5 in the toy world, for the demo and the tests: a fixed random vector for each
word."""

import re

import torch

WIDTH, ROWS = 4096, 8
DEFAULTS = {"color": "red", "kind": "disc", "direction": "right", "speed": "slowly", "background": "dark"}
GROUPS = {
    "color": ("red", "orange", "yellow", "green", "blue", "purple"),
    "kind": ("disc", "square", "triangle"),
    "direction": ("left", "right", "up", "down"),
    "speed": ("slowly", "fast"),
    "background": ("dark", "light"),
}
SYNONYMS = {"circle": "disc", "slow": "slowly", "quickly": "fast", "box": "square"}


def encode(prompt: str) -> tuple[torch.Tensor, list[str]]:
    """The embedding [1, 8, 4096], float32, of a prompt, and one sentence for each unknown word and each default.

    A color belongs to the kind of shape that follows it; the vectors of both depend on whether that shape is the first
    or the second. A group of words that the prompt does not name gets its default. Rows without a word are zero.
    """
    words = parse(prompt)
    notes = []
    unknown = sorted({w for w in plain(prompt) if w not in known() and w not in FILLERS})
    if unknown:
        notes.append(f"The toy world does not know {', '.join(unknown)}.")
    for group in GROUPS:
        if group not in {g for g, _, _ in words}:
            words.append((group, DEFAULTS[group], 0))
            notes.append(f"The prompt names no {group}: {DEFAULTS[group]}.")
    rows = torch.zeros(1, ROWS, WIDTH)
    for row, (_, word, shape) in enumerate(words):
        rows[0, row] = vector(f"{word} {shape}")
    return rows, notes


FILLERS = {"a", "an", "and", "the", "moving", "moves", "over", "on", "background", "to"}


def plain(prompt: str) -> list[str]:
    return [SYNONYMS.get(word, word) for word in re.findall(r"[a-z]+", prompt.lower())]


def known() -> dict[str, str]:
    return {word: group for group, words in GROUPS.items() for word in words}


def parse(prompt: str) -> list[tuple[str, str, int]]:
    """The known words as (group, word, which shape): at most two shapes and one word of each other kind."""
    groups, found, shapes = known(), [], 0
    for word in plain(prompt):
        group = groups.get(word)
        if group is None or (shapes == 2 and group in ("color", "kind")):
            continue
        which = shapes if group in ("color", "kind") else 0
        if (group, which) in {(g, s) for g, _, s in found}:
            continue
        found.append((group, word, which))
        shapes += group == "kind"
    return found


def vector(name: str) -> torch.Tensor:
    """[4096], standard normal, the same on every machine."""
    seed = int.from_bytes(name.encode()[:7], "little") * 31 + sum(name.encode())
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
