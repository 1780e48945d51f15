"""Noisy views of a text: changes that a good layer ignores, by LiDAR.

The kinds are those of the metric's reference: a split word, a random character, a neighbour on
the keyboard. The share of words that are hit is ours.
"""

from __future__ import annotations

import random
import re
import string

# Share of the words that a view changes.
RATE = 0.3

_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _neighbours() -> dict[str, str]:
    """Letter -> the letters that touch it on a QWERTY keyboard."""
    place = {key: (r, c) for r, row in enumerate(_KEYS) for c, key in enumerate(row)}
    # Each row is about half a key to the right of the one above it.
    touching = {(0, -1), (0, 1), (1, -1), (1, 0), (-1, 0), (-1, 1)}
    return {
        key: "".join(k for k, (r, c) in place.items() if (r - row, c - column) in touching)
        for key, (row, column) in place.items()
    }


NEIGHBOURS = _neighbours()


def noisy_view(text: str, view: int, seed: int, rate: float = RATE) -> str:
    """The ``view``-th noisy view of ``text``: a pure function of its arguments.

    Each word is hit with probability ``rate``, at least one is; a hit splits it by a space,
    replaces a character by a random letter or digit, or one by a neighbour on the keyboard.

    Returns:
        A text of the same length, plus one for each split; without words, the text itself.
    """
    # Seeding with a string hashes it with SHA-512: the same on every machine and run.
    chance = random.Random(f"{seed}/{view}/{text}")
    pieces = re.split(r"(\s+)", text)
    words = [i for i, piece in enumerate(pieces) if piece.strip()]
    if not words:
        return text
    hit = [i for i in words if chance.random() < rate] or [chance.choice(words)]
    for i in hit:
        pieces[i] = _spoilt(pieces[i], chance)
    return "".join(pieces)


def _spoilt(word: str, chance: random.Random) -> str:
    letters = [i for i, character in enumerate(word) if character.lower() in NEIGHBOURS]
    kinds = ["random"] + ["split"] * (len(word) > 1) + ["keyboard"] * bool(letters)
    kind = chance.choice(kinds)
    if kind == "split":
        at = chance.randrange(1, len(word))
        return f"{word[:at]} {word[at:]}"
    if kind == "keyboard":
        at = chance.choice(letters)
        new = chance.choice(NEIGHBOURS[word[at].lower()])
        new = new.upper() if word[at].isupper() else new
    else:
        at = chance.randrange(len(word))
        others = (string.ascii_lowercase + string.digits).replace(word[at], "")
        new = chance.choice(others)
    return word[:at] + new + word[at + 1 :]
