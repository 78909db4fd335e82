"""Top-k: the compiled selection equals sorting, and its rules hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hwsim
from hwsim.errors import SpecError
from hwsim.kernels import select_topk
from hwsim.kernels.numba_cpu import select as compiled


def same(x, y):
    equal = np.array_equal(x.indices, y.indices) and x.indices.dtype == y.indices.dtype == np.int32
    return equal and (np.array_equal(x.offsets, y.offsets) if x.offsets is not None else y.offsets is None)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 6), n=st.integers(0, 40), kept=st.integers(1, 45), levels=st.integers(1, 6),
    rank_over=st.sampled_from(["example", "batch"]), score=st.sampled_from(["magnitude", "random"]),
    wide=st.booleans(), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_compiled_selection_equals_the_reference(rows, n, kept, levels, rank_over, score, wide, seed):
    rng = np.random.default_rng(seed)
    g = rng.integers(-levels, levels + 1, (rows, n)).astype(np.float64 if wide else np.float32) / 3  # many ties, zeros
    with hwsim.backend("numba"):
        got = select_topk(g, kept, rank_over, score, stream=seed)
    with hwsim.backend("reference"):
        expected = select_topk(g, kept, rank_over, score, stream=seed)
    assert same(got, expected)
    for r in range(rows):
        assert len(got.row(r)) <= max(kept, 0) or kept >= n
        assert (np.diff(got.row(r)) > 0).all()


def test_ties_go_to_the_lowest_index_and_zeros_are_never_kept():
    g = np.array([[1.0, -2.0, 2.0, 0.0, 2.0], [0.0, 0.0, -3.0, 0.0, -0.0]], np.float32)
    kept = select_topk(g, 2)
    assert kept.row(0).tolist() == [1, 2] and kept.row(1).tolist() == [2]
    assert select_topk(g, 2, "batch").indices.tolist() == [1, 2]  # column sums 1 2 5 0 2: the tie goes to column 1
    assert kept.mask().sum() == 3


def test_keeping_everything_is_no_selection():
    g = np.array([[1.0, 0.0, 2.0]], np.float32)
    assert select_topk(g, 3).indices.tolist() == [0, 1, 2]
    assert select_topk(g, 9, "batch").indices.tolist() == [0, 1, 2]


def test_a_column_sum_is_added_in_float64_in_row_order():
    g = np.array([[2.0**60, 1.0], [1.0, 2.0**60], [-(2.0**60), 0.0]], np.float32)
    assert select_topk(g, 1, "batch").indices.tolist() == [0]
    tall = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    total = np.zeros(3)
    for row in tall:
        total += np.abs(row.astype(np.float64))
    assert np.array_equal(compiled._column_sums(tall), total)


def test_random_scores_differ_between_streams_and_cover_every_position():
    g = torch.ones(40, 30)
    first = select_topk(g, 5, score="random", stream=1)
    assert not np.array_equal(first.indices, select_topk(g, 5, score="random", stream=2).indices)
    assert len(np.unique(first.indices)) == 30


def test_nan_and_bad_arguments_are_errors():
    for kept in (1, 9):
        with pytest.raises(SpecError, match="NaN"):
            select_topk(np.array([[1.0, np.nan, 2.0]], np.float32), kept)
    with pytest.raises(SpecError, match="kept: got 0"):
        select_topk(np.ones((1, 3), np.float32), 0)
    with pytest.raises(SpecError, match="rank_over: got 'rows'"):
        select_topk(np.ones((1, 3), np.float32), 1, "rows")


def test_a_wrong_tie_rule_turns_the_comparison_red():
    g = np.array([[1.0, 1.0, 1.0]], np.float32)
    mirrored = select_topk(g[:, ::-1].copy(), 2)
    highest = np.sort(2 - mirrored.indices)  # what "highest index wins" would give
    assert not np.array_equal(highest, select_topk(g, 2).indices)
