"""Workloads from layer shapes and from SCALE-Sim topology files."""

from __future__ import annotations

import pytest

from hwsim.errors import SpecError
from hwsim.simulation.topology import ConvShape, LinearShape, RandomTopK, read_topology, workload_of
from hwsim.workload import Gemm, OpKind

CONV = """Layer name, IFMAP Height, IFMAP Width, Filter Height, Filter Width, Channels, Num Filter, Strides,
Conv1, 224, 224, 7, 7, 3, 64, 2,
FC, 1, 1, 1, 1, 512, 1000, 1,
"""
GEMMS = "Layer, M, N, K,\nfirst, 64, 500, 784,\nsecond, 64, 500, 500,\n"


def test_both_kinds_of_files_are_read(tmp_path):
    conv, fully = read_topology(CONV)
    assert conv == ConvShape("Conv1", 3, (224, 224), 64, (7, 7), (2, 2))
    assert fully == ConvShape("FC", 512, (1, 1), 1000, (1, 1))
    (tmp_path / "gemms.csv").write_text(GEMMS)
    assert read_topology(tmp_path / "gemms.csv") == [
        LinearShape("first", 784, 500, 64), LinearShape("second", 500, 500, 64),
    ]  # fmt: skip
    assert read_topology(CONV, round_up=True)[0].out_size == (110, 110)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no such file|No such file"),
        ("Layer, M, N, K\nfirst, 64, x, 784\n", "topology:2: first: got 'x'"),
        ("Layer, M, N, K\nfirst, 64, 784\n", "topology:2: first: got 2 numbers"),
        ("name, h, w, fh, fw, c, n, s\nc1, 3, 3, 5, 5, 1, 1, 1\n", "a filter larger than its input"),
        ("name, h, w, fh, fw, c, n, s\nc1, 3, 3, 0, 1, 1, 1, 1\n", "each 1 or more"),
    ],
)
def test_mistakes_name_file_and_line(text, expected):
    with pytest.raises(SpecError, match=expected):
        read_topology(text or "missing.csv")


def test_a_training_step_has_the_axes_of_the_contract():
    workload = workload_of([LinearShape("fc1", 30, 20), LinearShape("fc2", 20, 10)], batch=8, training=True)
    sizes = {op.id: (op.m, op.n, op.k) for op in workload.ops if op.kind is OpKind.GEMM}
    assert sizes == {
        "fc1.output": (8, 20, 30),
        "fc2.output": (8, 10, 20),
        "fc2.grad_input": (8, 20, 10),
        "fc2.grad_weight": (10, 20, 8),
        "fc1.grad_weight": (20, 30, 8),  # the first layer has no grad_input
    }
    updates = [op for op in workload.ops if op.kind is OpKind.UPDATE]
    assert [len(op.writes) for op in updates] == [3, 3]  # weight and two states


def test_a_convolution_lowers_to_the_same_macs_in_all_three_gemms():
    conv = ConvShape("c", 3, (9, 9), 8, (3, 3), (2, 2), (1, 1))
    second = ConvShape("d", 8, conv.out_size, 4, (3, 3))
    workload = workload_of([conv, second], batch=2, training=True)
    macs = {op.gemm: op.m * op.n * op.k for op in workload.ops if op.layer == "d" and op.gemm}
    assert len(set(macs.values())) == 1
    assert set(macs) == set(Gemm)


def test_random_selections_are_reproducible_and_within_bounds():
    layers = [LinearShape("fc1", 30, 20), LinearShape("fc2", 20, 10)]
    for scope in ("batch", "example"):
        first, again, other = (
            workload_of(layers, batch=8, training=True, topk=RandomTopK(5, scope, seed)) for seed in (1, 1, 2)
        )
        (one,), (same,), (different,) = (list(w.selections.values()) for w in (first, again, other))
        assert (one.indices[0] == same.indices[0]).all()
        assert (one.indices[0] != different.indices[0]).any()
        assert (one.row_counts(0) == 5).all()
        assert one.indices[0].max() < 20
