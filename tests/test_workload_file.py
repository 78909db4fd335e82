"""Workloads in files: they come back equal, and files that do not belong together are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hwsim.errors import SpecError
from hwsim.simulation.topology import ConvShape, LinearShape, RandomTopK, workload_of
from hwsim.workload_file import load_workload, save_workload, workload_hash

LAYERS = [ConvShape("c", 3, (8, 8), 6, (3, 3), (2, 2), (1, 1)), LinearShape("fc1", 96, 30), LinearShape("fc2", 30, 10)]


@pytest.mark.parametrize("scope", ["batch", "example"])
def test_a_workload_comes_back_equal(tmp_path, scope):
    workload = workload_of(LAYERS, batch=4, training=True, topk=RandomTopK(3, scope, steps=2))
    save_workload(workload, tmp_path / "w.json")
    again = load_workload(tmp_path / "w.json")
    assert (again.name, again.batch, again.ops, again.tensors) == (
        workload.name, workload.batch, workload.ops, workload.tensors,
    )  # fmt: skip
    for name, selection in workload.selections.items():
        for kind in ("indices", "offsets"):
            for a, b in zip(getattr(selection, kind), getattr(again.selections[name], kind), strict=True):
                assert a.dtype == b.dtype
                np.testing.assert_array_equal(a, b)
    assert workload_hash(again) == workload_hash(workload)


def test_a_dense_workload_is_one_file(tmp_path):
    save_workload(workload_of(LAYERS, batch=2), tmp_path / "w.json")
    assert [path.name for path in tmp_path.iterdir()] == ["w.json"]


def test_the_hash_sees_one_index(tmp_path):
    workload = workload_of(LAYERS, batch=4, training=True, topk=RandomTopK(3))
    before = workload_hash(workload)
    selection = next(iter(workload.selections.values()))
    selection.indices[0][0] ^= 1
    assert workload_hash(workload) != before


def test_arrays_of_another_workload_are_refused(tmp_path):
    for seed in (1, 2):
        save_workload(
            workload_of(LAYERS, batch=4, training=True, topk=RandomTopK(3, seed=seed)), tmp_path / f"w{seed}.json"
        )
    (tmp_path / "w1.npz").write_bytes((tmp_path / "w2.npz").read_bytes())
    with pytest.raises(SpecError, match="do not belong together"):
        load_workload(tmp_path / "w1.json")
    (tmp_path / "w1.npz").write_bytes(b"not an archive")
    with pytest.raises(SpecError, match="not a readable"):
        load_workload(tmp_path / "w1.json")
    (tmp_path / "w1.npz").unlink()
    with pytest.raises(SpecError, match="No such file"):
        load_workload(tmp_path / "w1.json")


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("ops", 0, "kind"), "gem", "ops\\[0\\].kind: got 'gem'"),
        (("ops", 0, "m"), -3, "ops\\[0\\].m"),
        (("tensors", 0, "format"), "float7", "float7"),
        (("schema",), "workload/9", "workload/9"),
        (("ops", 0, "reads"), ["ghost", "c.weight"], "ghost"),
    ],
)
def test_mistakes_are_named(tmp_path, path, value, expected):
    save_workload(workload_of(LAYERS, batch=2), tmp_path / "w.json")
    data = json.loads((tmp_path / "w.json").read_text())
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "w.json").write_text(json.dumps(data, indent=1))
    with pytest.raises(SpecError, match=expected):
        load_workload(tmp_path / "w.json")


@pytest.mark.parametrize(("field", "value"), [("rows", 5), ("rows", 10**19), ("extent", 2)])
def test_kept_positions_must_fit_their_selection(tmp_path, field, value):
    """The arrays are whole, but the JSON beside them says other extents."""
    workload = workload_of(LAYERS, batch=4, training=True, topk=RandomTopK(3, "example"))
    save_workload(workload, tmp_path / "w.json")
    data = json.loads((tmp_path / "w.json").read_text())
    data["selections"][0][field] = value
    (tmp_path / "w.json").write_text(json.dumps(data))
    with pytest.raises(SpecError, match=r"selections\..*" + ("positions from 0" if field == "extent" else "rows")):
        load_workload(tmp_path / "w.json")


def test_a_damaged_archive_is_refused_wherever_the_damage_is(tmp_path):
    save_workload(workload_of(LAYERS, batch=4, training=True, topk=RandomTopK(3)), tmp_path / "w.json")
    sound = (tmp_path / "w.npz").read_bytes()
    refused = 0
    for place in range(0, len(sound), 7):
        damaged = bytearray(sound)
        damaged[place] ^= 0xFF
        (tmp_path / "w.npz").write_bytes(damaged)
        try:
            load_workload(tmp_path / "w.json")  # some bytes, such as a date, mean nothing
        except SpecError:
            refused += 1
    assert refused > len(sound) / 7 / 2
