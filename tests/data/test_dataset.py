"""Data sets by name: where they are looked for, and what is in them."""

import os

import numpy as np
import pytest

from hwsim.data.dataset import load, names
from hwsim.data.fetch import REMOTE, RemoteFile, fetch, retrieve
from hwsim.errors import SpecError, UnsupportedError


def test_digits_need_no_files():
    data = load("digits")
    assert (len(data.train), len(data.dev), len(data.test)) == (1199, 299, 299)
    assert data.train.inputs.dtype == np.float32 and data.train.inputs.min() == 0 and data.train.inputs.max() == 1
    assert set(data.test.targets) == set(range(10))


def test_an_unknown_name_is_told_the_near_one():
    with pytest.raises(SpecError, match=r"got 'minst', expected one of .*Did you mean 'mnist'"):
        load("minst")


def test_a_missing_file_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("HWSIM_DATA", raising=False)
    with pytest.raises(SpecError, match="hwsim data fetch mnist"):
        load("mnist")


def test_a_folder_that_is_named_must_exist(tmp_path, monkeypatch):
    monkeypatch.setenv("HWSIM_DATA", str(tmp_path / "typo"))
    with pytest.raises(SpecError, match="HWSIM_DATA: got"):
        load("mnist")


def test_every_data_set_can_be_fetched_or_is_embedded():
    assert set(REMOTE) == set(names())


def test_a_wrong_checksum_is_refused_and_leaves_nothing(tmp_path):
    source = tmp_path / "served.bin"
    source.write_bytes(b"not what was promised")
    file = RemoteFile("set/served.bin", (f"file://{source}",), "0" * 64)
    with pytest.raises(SpecError, match="checksum differs"):
        retrieve(file, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("served*"))


def test_offline_is_one_clear_line(tmp_path):
    file = RemoteFile("set/x.gz", ("http://127.0.0.1:9/x.gz", "http://127.0.0.1:9/y.gz"), "0" * 64)
    with pytest.raises(UnsupportedError) as caught:
        retrieve(file, tmp_path)
    assert "cannot download set/x.gz" in str(caught.value) and "\n" not in str(caught.value)


def test_fetching_an_unknown_name_is_refused(tmp_path):
    with pytest.raises(SpecError, match="expected one of"):
        fetch("cifar11", tmp_path)


@pytest.mark.data
@pytest.mark.skipif("HWSIM_DATA" not in os.environ, reason="HWSIM_DATA names no folder of data sets")
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_original_files_load(name):
    data = load(name)
    assert (len(data.train), len(data.dev), len(data.test)) == (55_000, 5_000, 10_000)
    assert data.train.inputs.shape[1] == 784 and len(data.classes) == 10
