"""idx files: what is read, and what a damaged file says."""

import gzip
import struct

import numpy as np
import pytest

from hwsim.data.dataset import load
from hwsim.data.idx import read_idx
from hwsim.data.mnist import FILES, FOLDERS
from hwsim.errors import SpecError


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def tiny_mnist(tmp_path):
    """A folder with the four files of MNIST, with few images."""
    rng = np.random.default_rng(0)
    folder = tmp_path / FOLDERS["mnist"]
    folder.mkdir()
    for name, count in zip(FILES, (5003, 5003, 7, 7), strict=True):
        shape = (count, 28, 28) if "images" in name else (count,)
        values = rng.integers(0, 256 if "images" in name else 10, shape)
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(values)))
    return tmp_path


def test_values_and_shape_come_back(tmp_path):
    array = np.arange(24).reshape(2, 3, 4)
    for name, data in (("plain", idx_bytes(array)), ("packed.gz", gzip.compress(idx_bytes(array)))):
        (tmp_path / name).write_bytes(data)
        assert np.array_equal(read_idx(tmp_path / name), array)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: gzip.compress(raw)[:-9], "damaged or truncated"),
        (lambda raw: gzip.compress(raw)[:12] + b"\xff" * 8 + gzip.compress(raw)[20:], "damaged"),
        (lambda raw: raw[:-1], "11 values, expected 12"),
        (lambda raw: raw + b"x", "13 values, expected 12"),
        (lambda raw: raw[:6], "header is truncated"),
        (lambda raw: b"GIF8" + raw, "not an idx file"),
        (lambda raw: raw[:2] + b"\x0d" + raw[3:], "type 0x0d, expected 0x08"),
        (lambda raw: b"", "begins with nothing"),
    ],
)
def test_damage_is_one_line_naming_the_file(tmp_path, damage, said):
    path = tmp_path / "images"
    path.write_bytes(damage(idx_bytes(np.arange(12).reshape(3, 4))))
    with pytest.raises(SpecError) as caught:
        read_idx(path)
    assert said in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_first_five_thousand_are_the_dev_set(tiny_mnist):
    data = load("mnist", tiny_mnist)
    assert (len(data.train), len(data.dev), len(data.test)) == (3, 5000, 7)
    whole = read_idx(tiny_mnist / "mnist" / "train-images-idx3-ubyte.gz")
    assert np.array_equal(data.dev.inputs[0], whole[0].reshape(-1).astype(np.float32) / np.float32(255))
    assert np.array_equal(data.train.inputs[0], whole[5000].reshape(-1).astype(np.float32) / np.float32(255))


def test_images_without_their_labels_are_refused(tiny_mnist):
    labels = tiny_mnist / "mnist" / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx_bytes(np.zeros(6))))
    with pytest.raises(SpecError, match="do not fit together"):
        load("mnist", tiny_mnist)


def test_a_label_outside_the_classes_is_refused(tiny_mnist):
    labels = tiny_mnist / "mnist" / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx_bytes(np.full(7, 10))))
    with pytest.raises(SpecError, match="labels go up to 10, expected 0 to 9"):
        load("mnist", tiny_mnist)
