"""Treebanks in the CoNLL-U format, and UD English EWT as a tagging task."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwsim.data.dataset import Dataset, Split, find_file
from hwsim.data.idx import read_bytes
from hwsim.errors import SpecError

FOLDER = "ud-ewt"
SPLITS = ("train", "dev", "test")
LENGTH = 40  # words a row; longer sentences go on in the next row
PADDING, UNKNOWN = 0, 1
WORDS, AFFIXES, SHAPES = 8_000, 1_000, 8  # sizes of the vocabularies, padding and unknown among them
FEATURES = ("word", "prefix", "suffix", "shape")


@dataclass(frozen=True)
class Word:
    """One word of a sentence. `head` counts words from 1; 0 is the root."""

    form: str
    upos: str
    xpos: str
    head: int
    relation: str


def read_conllu(path: Path) -> list[list[Word]]:
    """Return the sentences of a CoNLL-U file, gzipped or not; spans and empty nodes are left out.

    Raises SpecError naming file and line of what is not CoNLL-U.
    """
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    sentences: list[list[Word]] = []
    words: list[Word] = []
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if not line:
            if words:
                sentences.append(words)
            words = []
        elif not line.startswith("#"):
            columns = line.rstrip("\r").split("\t")
            if len(columns) != 10:
                raise SpecError(f"{path}:{number}: {len(columns)} columns, expected 10")
            if "-" in columns[0] or "." in columns[0]:
                continue
            if columns[0] != str(len(words) + 1) or not columns[6].isdigit():
                raise SpecError(f"{path}:{number}: got word {columns[0]} with head {columns[6]!r}, expected numbers")
            words.append(Word(columns[1], columns[3], columns[4], int(columns[6]), columns[7]))
    if not sentences:
        raise SpecError(f"{path}: holds no sentence")
    return sentences


def load_tagging(tags: str, folders: tuple[Path, ...]) -> Dataset:
    """Return UD English EWT as a tagging task; `tags` is ``xpos`` (Penn-style) or ``upos`` (universal).

    Inputs are int64 (rows, 40, 4): word, prefix and suffix of up to three letters, and shape, by rank of frequency in
    the training set; targets (rows, 40), -1 at padding. Words of the test set with a tag that training never shows
    have class -1 too and do not count.
    """
    splits, digest = read_splits(folders)
    train = [word for sentence in splits["train"] for word in sentence]
    classes = tuple(sorted({getattr(word, tags) for word in train}))
    numbers = {tag: number for number, tag in enumerate(classes)}
    vocabularies = [
        rank([features(word.form)[column] for word in train], size)
        for column, size in enumerate((WORDS, AFFIXES, AFFIXES))
    ]

    def encode(sentences: list[list[Word]]) -> Split:
        pieces = [s[start : start + LENGTH] for s in sentences for start in range(0, len(s), LENGTH)]
        inputs = np.zeros((len(pieces), LENGTH, len(FEATURES)), np.int64)
        targets = np.full((len(pieces), LENGTH), -1, np.int64)
        for row, piece in enumerate(pieces):
            for column, word in enumerate(piece):
                inputs[row, column] = encode_word(word.form, vocabularies)
                targets[row, column] = numbers.get(getattr(word, tags), -1)
        return Split(inputs, targets)

    name = "ud_ewt" if tags == "xpos" else "ud_ewt_upos"
    made, dev, test = (encode(splits[split]) for split in SPLITS)
    return Dataset(name, made, dev, test, classes, digest)


def read_splits(folders: tuple[Path, ...]) -> tuple[dict[str, list[list[Word]]], str]:
    """Return the sentences of the three splits, and the hash of the texts."""
    digest, splits = hashlib.sha256(), {}
    for split in SPLITS:
        path = find_text("ud_ewt", f"{FOLDER}/en_ewt-ud-{split}.conllu", folders)
        digest.update(read_bytes(path))
        splits[split] = read_conllu(path)
    return splits, digest.hexdigest()


def find_text(name: str, relative: str, folders: tuple[Path, ...]) -> Path:
    """Return the path of a text file, gzipped or not."""
    for folder in folders:
        for candidate in (folder / relative, folder / f"{relative}.gz"):
            if candidate.is_file():
                return candidate
    return find_file(name, relative, folders)


def features(form: str) -> tuple[str, str, str]:
    """Return a word as a tagger looks at it: lower case, first three letters, last three letters."""
    lower = form.lower()
    return lower, lower[:3], lower[-3:]


def shape(form: str) -> int:
    """Return 1 to 7: lower case, capitalized, all capitals, number, mixed with digits, punctuation, other."""
    if form.isdigit():
        return 4
    if any(c.isdigit() for c in form):
        return 5
    if not any(c.isalpha() for c in form):
        return 6
    if form.islower():
        return 1
    if form.isupper():
        return 3
    return 2 if form[0].isupper() and form[1:].islower() else 7


def rank(values: list[str], size: int) -> dict[str, int]:
    """Return the numbers of the most frequent values, from 2 on; equal counts in alphabetical order."""
    counts = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))
    return {value: number for number, (value, _) in enumerate(counts[: size - 2], start=2)}


def encode_word(form: str, vocabularies: list[dict[str, int]]) -> list[int]:
    """Return the four numbers of a word."""
    parts = zip(features(form), vocabularies, strict=True)
    return [*(numbers.get(value, UNKNOWN) for value, numbers in parts), shape(form)]
