"""Tiny Shakespeare as a task of guessing the next character."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from hwsim.data.conllu import find_text
from hwsim.data.dataset import Dataset, Split
from hwsim.data.idx import read_bytes
from hwsim.errors import SpecError

WINDOW = 128  # characters a row; rows do not overlap
SHARES = (0.9, 0.95)  # where dev and test begin


def load_shakespeare(folders: tuple[Path, ...]) -> Dataset:
    """Return the text in rows of 128 characters: the first 90 % for training, then 5 % each for dev and test.

    Inputs are int64 (rows, 128), the characters' numbers in the order of their codes; each target is the character
    that follows. Raises SpecError if the file is missing, too short or no text.
    """
    path = find_text("tiny_shakespeare", "tinyshakespeare/input.txt", folders)
    raw = read_bytes(path)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    if len(text) < 40 * WINDOW:
        raise SpecError(f"{path}: {len(text)} characters, expected at least {40 * WINDOW}")
    letters = sorted(set(text))
    numbers = {letter: number for number, letter in enumerate(letters)}
    codes = np.array([numbers[letter] for letter in text], np.int64)
    edges = [0, *(int(share * len(codes)) for share in SHARES), len(codes)]
    train, dev, test = (cut(codes[edges[part] : edges[part + 1]]) for part in range(3))
    return Dataset("tiny_shakespeare", train, dev, test, tuple(letters), hashlib.sha256(raw).hexdigest())


def cut(codes: np.ndarray) -> Split:
    """Return a run of characters as rows of inputs and of the characters that follow them."""
    rows = (len(codes) - 1) // WINDOW
    size = rows * WINDOW
    return Split(codes[:size].reshape(rows, WINDOW), codes[1 : size + 1].reshape(rows, WINDOW))
