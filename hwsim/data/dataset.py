"""A data set in memory: three splits, their classes, and a hash that says exactly which bytes they came from."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from hwsim.errors import SpecError


@dataclass(frozen=True, eq=False)
class Split:
    """Inputs and targets of one split; row i of both belongs to the same example."""

    inputs: np.ndarray  # float32 (examples, ...), or int64 token ids
    targets: np.ndarray  # int64 class numbers: (examples,), or (examples, positions) with -1 for no target

    def __len__(self) -> int:
        return len(self.inputs)

    def head(self, examples: int | None) -> Split:
        """Return the first examples only; None means all."""
        return self if examples is None else Split(self.inputs[:examples], self.targets[:examples])


Scores = Callable[[np.ndarray], np.ndarray]
"""A network at work: class scores (rows, classes) for inputs (rows, ...)."""


@dataclass(frozen=True, eq=False)
class Measure:
    """How a data set judges a network, where the share of right classes is not what the task is about.

    `dev` and `test` return a share in [0, 1] for a network; their second argument is how many examples (sentences) to
    look at, None for all.
    """

    name: str  # "UAS"
    dev: Callable[[Scores, int | None], float]
    test: Callable[[Scores, int | None], float]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set: what a network learns from (train), is selected by (dev) and is judged by (test)."""

    name: str
    train: Split
    dev: Split
    test: Split
    classes: tuple[str, ...]
    sha256: str  # over the files (or arrays) it was read from
    measure: Measure | None = None  # in place of accuracy, for the choice of the best epoch too

    def __str__(self) -> str:
        sizes = f"{len(self.train)} train, {len(self.dev)} dev, {len(self.test)} test"
        return f"{self.name}: {sizes}, {len(self.classes)} classes"


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Load a data set by name from `data_dir`, the folder in HWSIM_DATA, or the user's cache, in this order.

    Raises SpecError with one line if the name is unknown or a file is missing, truncated or not what it should be.
    """
    return loader(name)(search_folders(data_dir))


def names() -> tuple[str, ...]:
    """Return the names of all data sets."""
    return tuple(LOADERS)


def loader(name: str) -> Callable[[tuple[Path, ...]], Dataset]:
    """Return the function that loads the named data set. Raises SpecError with the nearest name."""
    if name not in LOADERS:
        near = get_close_matches(name, LOADERS, 1)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        raise SpecError(f"data: got {name!r}, expected one of {', '.join(LOADERS)}{hint}")
    return LOADERS[name]


def search_folders(data_dir: str | Path | None) -> tuple[Path, ...]:
    """Return the folders in which data sets are looked for, first match wins.

    A folder that the user named must exist: a typo must not fall through to another copy of the data.
    """
    for source, folder in (("data_dir", data_dir), ("HWSIM_DATA", os.environ.get("HWSIM_DATA"))):
        if folder is not None and str(folder):
            if not Path(folder).is_dir():
                raise SpecError(f"{source}: got {str(folder)!r}, expected a folder that exists")
            return (Path(folder), cache_folder())
    return (cache_folder(),)


def cache_folder() -> Path:
    """Return the folder into which `hwsim data fetch` downloads (XDG cache directory)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hwsim"


def find_file(name: str, relative: str, folders: tuple[Path, ...]) -> Path:
    """Return the first of the folders' files with this relative path, or say where it was looked for."""
    for folder in folders:
        if (folder / relative).is_file():
            return folder / relative
    raise SpecError(
        f"data {name!r}: {relative} not found; set HWSIM_DATA or --data-dir to the folder that holds it, "
        f"or run: hwsim data fetch {name}"
    )


def _digits(folders: tuple[Path, ...]) -> Dataset:
    from hwsim.data.digits import load_digits

    return load_digits()


def _mnist(folders: tuple[Path, ...]) -> Dataset:
    from hwsim.data.mnist import load_mnist

    return load_mnist("mnist", folders)


def _fashion_mnist(folders: tuple[Path, ...]) -> Dataset:
    from hwsim.data.mnist import load_mnist

    return load_mnist("fashion_mnist", folders)


def _cifar10(folders: tuple[Path, ...]) -> Dataset:
    from hwsim.data.cifar import load_cifar10

    return load_cifar10(folders)


def _ud_ewt(folders: tuple[Path, ...]) -> Dataset:
    from hwsim.data.conllu import load_tagging

    return load_tagging("xpos", folders)


def _ud_ewt_upos(folders: tuple[Path, ...]) -> Dataset:
    from hwsim.data.conllu import load_tagging

    return load_tagging("upos", folders)


def _ud_ewt_parsing(folders: tuple[Path, ...]) -> Dataset:
    from hwsim.data.transitions import load_parsing

    return load_parsing(folders)


def _tiny_shakespeare(folders: tuple[Path, ...]) -> Dataset:
    from hwsim.data.text import load_shakespeare

    return load_shakespeare(folders)


LOADERS: dict[str, Callable[[tuple[Path, ...]], Dataset]] = {
    "digits": _digits,
    "mnist": _mnist,
    "fashion_mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "ud_ewt": _ud_ewt,
    "ud_ewt_upos": _ud_ewt_upos,
    "ud_ewt_parsing": _ud_ewt_parsing,
    "tiny_shakespeare": _tiny_shakespeare,
}
