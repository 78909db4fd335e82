"""The variance that an accumulator keeps: the formula's limits, and the formula beside sums through the kernels."""

import math

import numpy as np
import pytest

import hwsim
from hwsim import SpecError, accumulator_width
from hwsim.arithmetic.variance_retention import LARGEST_LOSS, needed_bits, variance_loss, variance_retention


def measured_retention(length, mac, operands="float8_e5m2", rows=192, columns=32, seed=0):
    """Variance of sums of Gaussian products in this arithmetic, over that of the exact sums."""
    draw = np.random.default_rng(seed)
    a = hwsim.quantize(draw.normal(size=(rows, length)).astype(np.float32), operands)
    b = hwsim.quantize(draw.normal(size=(length, columns)).astype(np.float32), operands)
    sums = hwsim.matmul(a, b, mac).astype(np.float64)
    return sums.var() / (a.astype(np.float64) @ b.astype(np.float64)).var()


def test_full_swamping_is_what_is_written_above_the_formula():
    """With products of one bit nothing is lost in part, and the mean can be written out."""
    n, m = 300, 3

    def tail(bound, steps):
        return math.erfc(bound / math.sqrt(2 * steps))

    lost = 2.0 ** (m - 3) / 3 * 2 * 1 * 3
    weights = [tail(2**m, i) * (1 - tail(2**m, i - 1)) for i in range(2, n)]
    rest = 1 - tail(2**m, n)
    expected = sum(w * max(0, i - lost) for w, i in zip(weights, range(2, n), strict=True)) + rest * n
    assert variance_retention(n, m, 1) == pytest.approx(expected / (n * (sum(weights) + rest)))


def test_retention_falls_with_length_and_rises_with_bits():
    for product_bits in (3, 5, 7):
        by_length = [variance_retention(n, 6, product_bits) for n in (2, 16, 256, 4096, 65536, 1 << 20)]
        assert by_length == sorted(by_length, reverse=True) and by_length[0] == 1 and by_length[-1] < 0.5
        needs = [needed_bits(n, product_bits) for n in (16, 256, 4096, 65536, 1 << 20)]
        assert needs == sorted(needs) and needs[-1] - needs[0] >= 6
    assert all(0 < variance_retention(4096, m, 5) <= 1 for m in range(1, 24))


def test_groups_of_steps_add_up_to_all_steps(monkeypatch):
    grouped = variance_retention(60_000, 9, 5)
    variance_retention.cache_clear()
    monkeypatch.setattr("hwsim.arithmetic.variance_retention.EXACT_STEPS", 100_000)
    assert grouped == pytest.approx(variance_retention(60_000, 9, 5), rel=1e-3)
    variance_retention.cache_clear()


@pytest.mark.parametrize("length", [256, 1024, 4096])
@pytest.mark.parametrize("chunk", [None, 64])
def test_the_needed_bits_keep_the_variance_of_real_sums(length, chunk):
    """Rounded to nearest: enough by the analysis is enough; and so much less is not."""
    order = "sequential" if chunk is None else f"chunked({chunk})"
    needed = accumulator_width(length, "float8_e5m2", chunk=chunk).needed_bits
    assert measured_retention(length, f"e8m{needed}, order={order}") == pytest.approx(1, abs=0.02)
    assert measured_retention(length, f"e8m{needed - 4}, order={order}") < 0.95


@pytest.mark.parametrize("length", [1024, 4096])
def test_the_analysis_is_on_the_safe_side_by_two_bits_or_three(length):
    kept = {m: measured_retention(length, f"e8m{m}") for m in range(2, 12)}
    enough = min(m for m, share in kept.items() if all(kept[other] > 0.98 for other in kept if other >= m))
    assert 1 <= needed_bits(length, 5) - enough <= 3


def test_chunks_save_bits_in_the_analysis_and_in_real_sums():
    whole, chunked = (accumulator_width(4096, "float8_e5m2", chunk=chunk).needed_bits for chunk in (None, 64))
    assert whole - chunked >= 2
    mac = f"e8m{chunked - 2}"
    assert measured_retention(4096, f"{mac}, order=chunked(64)") > measured_retention(4096, mac) + 0.1


def test_a_truncating_accumulator_needs_more_than_the_analysis_says():
    """Each truncation pulls the sum towards 0: the analysis is for rounding to nearest."""
    needed = needed_bits(4096, 5)
    assert measured_retention(4096, f"e8m{needed} toward_zero") < 0.5


def test_one_six_nine_in_chunks_of_64_suits_fp8_products():
    """The case of Wang et al. 2018: FP8 (1-5-2) operands, an accumulator of 1-6-9."""
    for length in (64, 784, 4096, 16384):
        assert accumulator_width(length, "float8_e5m2", accumulator="e6m9", chunk=64).suits
    assert accumulator_width(65536, "float8_e5m2", accumulator="e6m9").suits is False


def test_the_loss_is_the_criterion():
    width = accumulator_width(4096, "bfloat16", "float8_e4m3fn", accumulator="bfloat16")
    assert width.product_bits == 7 + 3 + 1 and width.accumulator_bits == 7
    assert width.loss == variance_loss(4096, width.retention) and width.suits == (width.loss < LARGEST_LOSS)
    assert accumulator_width(4096, "bfloat16").suits is None
    assert variance_loss(1 << 30, 0.3) == math.inf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "float8_e5m2"), "length: got 0"),
        ((64, "int8"), "a: got int8, expected a float format"),
        ((64, "float8_e5m2", None, "fixed16.8"), "accumulator: got fixed16.8"),
        ((64, "float8_e5m2", None, None, 0), "chunk: got 0"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(SpecError, match=message):
        accumulator_width(*arguments)
