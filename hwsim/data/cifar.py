"""CIFAR-10 from the publisher's binary archive, packed or unpacked, or from a compact npz; never through pickle.

The dev set is the first 5,000 training images, as for MNIST. Pixels are normalized by the channels' mean and deviation
over the training images.
"""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

from hwsim.data.dataset import Dataset, Split, find_file
from hwsim.errors import SpecError

DEV_EXAMPLES = 5_000
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.4914, 0.4822, 0.4465)  # of the 50,000 training images, red green blue, pixels in [0, 1]
DEVIATION = (0.2470, 0.2435, 0.2616)
ARCHIVE = "cifar10/cifar-10-binary.tar.gz"
UNPACKED = "cifar10/cifar-10-batches-bin"
COMPACT = "cifar10/cifar10.npz"
BATCHES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
RECORD = 1 + 3 * 32 * 32  # a label, then red, green and blue planes, row by row

Images = tuple[np.ndarray, np.ndarray]  # uint8 (n, 3, 32, 32), int64 (n,)


def load_cifar10(folders: tuple[Path, ...]) -> Dataset:
    """Return CIFAR-10: float32 images (n, 3, 32, 32), normalized, and int64 labels.

    Raises SpecError if no form of it is found, or the one found is damaged.
    """
    (images, labels), (test_images, test_labels) = read_any(folders)
    for targets in (labels, test_labels):
        if targets.size and targets.max() >= len(CLASSES):
            raise SpecError(f"data 'cifar10': labels go up to {targets.max()}, expected 0 to {len(CLASSES) - 1}")
    if len(labels) <= DEV_EXAMPLES:
        raise SpecError(f"data 'cifar10': {len(labels)} training images, expected more than {DEV_EXAMPLES}")
    digest = hashlib.sha256()
    for array in (images, labels, test_images, test_labels):
        digest.update(array.tobytes())
    return Dataset(
        "cifar10",
        train=Split(normalize(images[DEV_EXAMPLES:]), labels[DEV_EXAMPLES:]),
        dev=Split(normalize(images[:DEV_EXAMPLES]), labels[:DEV_EXAMPLES]),
        test=Split(normalize(test_images), test_labels),
        classes=CLASSES,
        sha256=digest.hexdigest(),
    )


def read_any(folders: tuple[Path, ...]) -> tuple[Images, Images]:
    """Return training and test images from the first form of the data set that is found."""
    for folder in folders:
        if (folder / ARCHIVE).is_file():
            return read_archive(folder / ARCHIVE)
        if (folder / UNPACKED).is_dir():
            return read_unpacked(folder / UNPACKED)
        if (folder / COMPACT).is_file():
            return read_compact(folder / COMPACT)
    find_file("cifar10", ARCHIVE, folders)
    raise AssertionError("find_file raises")


def read_archive(path: Path) -> tuple[Images, Images]:
    """Read the publisher's tar.gz."""
    parts = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = Path(member.name).name
                if name in BATCHES and member.isfile():
                    file = archive.extractfile(member)
                    assert file is not None
                    parts[name] = split_records(file.read(), f"{path}: {name}")
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise SpecError(f"{path}: the archive is damaged or truncated ({error})") from None
    missing = [name for name in BATCHES if name not in parts]
    if missing:
        raise SpecError(f"{path}: holds no {missing[0]}")
    return join([parts[name] for name in BATCHES[:5]]), parts[BATCHES[5]]


def read_unpacked(folder: Path) -> tuple[Images, Images]:
    """Read the publisher's files from their folder."""
    parts = []
    for name in BATCHES:
        if not (folder / name).is_file():
            raise SpecError(f"{folder / name}: not found")
        parts.append(split_records((folder / name).read_bytes(), str(folder / name)))
    return join(parts[:5]), parts[5]


def split_records(raw: bytes, place: str) -> Images:
    """Return the images and labels of one binary batch."""
    if not raw or len(raw) % RECORD:
        raise SpecError(f"{place}: {len(raw)} bytes, expected a multiple of {RECORD}; the file is damaged")
    records = np.frombuffer(raw, np.uint8).reshape(-1, RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def join(parts: list[Images]) -> Images:
    """Return several batches as one."""
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def read_compact(path: Path) -> tuple[Images, Images]:
    """Read the npz whose planes are stored as differences (its members: train_residual, train_labels, ...).

    Green is subtracted from red and blue, then each plane is differenced along rows and columns, all modulo 256.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            splits = [
                (restore(file[f"{name}_residual"]), file[f"{name}_labels"].astype(np.int64))
                for name in ("train", "test")
            ]
    except (KeyError, ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise SpecError(f"{path}: is damaged or not the compact form of CIFAR-10 ({error})") from None
    for images, labels in splits:
        if images.shape != (len(labels), 3, 32, 32):
            raise SpecError(f"{path}: images {images.shape} and {len(labels)} labels do not fit together")
    return splits[0], splits[1]


def restore(residual: np.ndarray) -> np.ndarray:
    """Undo the differences: (3, n, 32, 32) as stored, (n, 3, 32, 32) as pixels."""
    if residual.ndim != 4 or residual.dtype != np.uint8 or len(residual) != 3:
        raise ValueError(f"residual of shape {residual.shape}, expected (3, n, 32, 32) of uint8")
    planes = np.cumsum(residual, axis=-1, dtype=np.uint8)
    np.cumsum(planes, axis=-2, dtype=np.uint8, out=planes)
    planes[0] += planes[1]
    planes[2] += planes[1]
    return np.ascontiguousarray(planes.transpose(1, 0, 2, 3))


def normalize(images: np.ndarray) -> np.ndarray:
    """Return bytes as float32 with mean 0 and deviation 1 in each channel (of the training set)."""
    scale = np.array([1 / (255 * d) for d in DEVIATION], np.float32).reshape(1, 3, 1, 1)
    offset = np.array([m / d for m, d in zip(MEAN, DEVIATION, strict=True)], np.float32).reshape(1, 3, 1, 1)
    return images.astype(np.float32) * scale - offset
