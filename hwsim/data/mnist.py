"""MNIST and Fashion-MNIST from their original idx files.

The split is that of Sun et al. 2017 (arXiv 1706.06197): the first 5,000 of the 60,000 training images are the dev set.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from hwsim.data.dataset import Dataset, Split, find_file
from hwsim.data.idx import read_idx
from hwsim.errors import SpecError

DEV_EXAMPLES = 5_000
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
FOLDERS = {"mnist": "mnist", "fashion_mnist": "fashion-mnist"}
CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        "T-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
}


def load_mnist(name: str, folders: tuple[Path, ...]) -> Dataset:
    """Return `mnist` or `fashion_mnist`: images as float32 rows of 784 in [0, 1], labels as int64.

    Raises SpecError if a file is missing or damaged, or images and labels do not fit together.
    """
    paths = [find_idx(name, file, folders) for file in FILES]
    train_images, train_labels, test_images, test_labels = (read_idx(path) for path in paths)
    for images, labels, path in ((train_images, train_labels, paths[0]), (test_images, test_labels, paths[2])):
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise SpecError(f"{path}: images {images.shape} and labels {labels.shape} do not fit together")
        if labels.size and labels.max() >= len(CLASSES[name]):
            raise SpecError(f"{path}: its labels go up to {labels.max()}, expected 0 to {len(CLASSES[name]) - 1}")
    if len(train_labels) <= DEV_EXAMPLES:
        raise SpecError(f"{paths[0]}: {len(train_labels)} images, expected more than the {DEV_EXAMPLES} of the dev set")
    train = prepare(train_images, train_labels)
    digest = hashlib.sha256()
    for array in (train_images, train_labels, test_images, test_labels):
        digest.update(array.tobytes())
    return Dataset(
        name,
        train=Split(train.inputs[DEV_EXAMPLES:], train.targets[DEV_EXAMPLES:]),
        dev=Split(train.inputs[:DEV_EXAMPLES], train.targets[:DEV_EXAMPLES]),
        test=prepare(test_images, test_labels),
        classes=CLASSES[name],
        sha256=digest.hexdigest(),
    )


def find_idx(name: str, file: str, folders: tuple[Path, ...]) -> Path:
    """Return the path of one of the four files, gzipped or unpacked."""
    try:
        return find_file(name, f"{FOLDERS[name]}/{file}.gz", folders)
    except SpecError:
        for folder in folders:
            plain = folder / FOLDERS[name] / file
            if plain.is_file():
                return plain
        raise


def prepare(images: np.ndarray, labels: np.ndarray) -> Split:
    """Return bytes as pixels in [0, 1], one row an image."""
    pixels = images.reshape(len(images), -1).astype(np.float32)
    pixels /= np.float32(255)
    return Split(pixels, labels.astype(np.int64))
