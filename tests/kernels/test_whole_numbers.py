"""Operands as integers, their products in pairs and by bytes: exact, proven, and left to others where they are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hwsim.arithmetic.mac import parse_mac
from hwsim.arithmetic.named import parse_format
from hwsim.kernels import matmul
from hwsim.kernels.numba_cpu import int16_lanes, matmul_blas, matmul_pairs, whole_numbers
from hwsim.kernels.numba_cpu.matrix import matrix
from hwsim.kernels.numba_cpu.tile_pairs import PAIR_PRODUCTS

needs_pairs = pytest.mark.skipif(not PAIR_PRODUCTS, reason="this processor has no sums of pairs of products")
SHAPES = [(61, 523, 147), (6, 3001, 250), (64, 1024, 64), (300, 16, 900)]
MACS = ["int32", "int24", "int32 wrap", "int24 wrap", "int16 wrap", "int9 wrap", "int48"]


def integers(rng: np.random.Generator, shape: tuple[int, int], largest: int) -> np.ndarray:
    x = rng.integers(-largest, largest, shape).astype(np.float32)
    x[0, 0] = x[-1, -1] = -largest
    return np.where(x == 0, np.float32(-0.0), x)


def expected(a: np.ndarray, b: np.ndarray, mac: str) -> np.ndarray:
    """Sums of 64 bits, wrapped; float64 holds them."""
    total = (a.astype(np.int64) @ b.astype(np.int64)).astype(np.float64)
    span = 2.0 ** parse_mac(mac).accumulator.bits
    return (total + span / 2) % span - span / 2 if mac.endswith("wrap") else total


def assert_sums(got: np.ndarray, wanted: np.ndarray) -> None:
    differ = np.argwhere(got != wanted)
    assert not len(differ), f"{len(differ)} differ, first {got[*differ[0]]} not {wanted[*differ[0]]}"
    assert not np.signbit(got[got == 0]).any()


@pytest.fixture(params=["pairs", "bytes"])
def products(request, monkeypatch) -> list[str]:
    """Force one kind of product and record what it was used for."""
    if request.param == "pairs" and not PAIR_PRODUCTS:
        pytest.skip("this processor has no sums of pairs of products")
    monkeypatch.setattr(matmul_blas, "BYTE_PRODUCTS", request.param == "bytes")
    honest, used = matmul_blas._multiply_integers, []

    def watched(*arguments):
        done = honest(*arguments)
        used.extend([request.param] * done)
        return done

    monkeypatch.setattr(matmul_blas, "_multiply_integers", watched)
    return used


@pytest.mark.parametrize("shape", SHAPES)
def test_integer_sums_are_exact(shape, products):
    m, k, n = shape
    rng = np.random.default_rng(1)
    a, b = integers(rng, (m, k), 128), integers(rng, (k, n), 128)
    for mac in MACS:
        wanted = expected(a, b, mac)
        if mac == "int24" and np.abs(wanted).max() >= 2**23:
            continue
        for x in (a, np.asfortranarray(a)):
            for y in (b, np.asfortranarray(b)):
                assert_sums(matmul(x, y, mac), wanted)
        assert_sums(matmul(torch.from_numpy(a), torch.from_numpy(b), mac).numpy(), wanted)
    assert len(products) >= 12


@pytest.mark.parametrize(("left", "right"), [(3, -2), (-5, 4), (0, 7)])
def test_units_of_the_operands_may_be_any_power_of_two(left, right, products):
    rng = np.random.default_rng(2)
    a, b = integers(rng, (70, 300), 128), integers(rng, (300, 210), 127)
    got = matmul(a * np.float32(2.0**left), b * np.float32(2.0**right), "fixed40.10")
    assert_sums(got, expected(a, b, "int40") * 2.0 ** (left + right))
    got = matmul(a * np.float32(0.25), b, "fixed20.2 wrap")  # the unit of the products is the accumulator's step
    assert_sums(got, expected(a, b, "int20 wrap") / 4)
    assert len(products) == 2


@needs_pairs
def test_operands_of_16_bits_wrap_as_two_complement(monkeypatch):
    monkeypatch.setattr(matmul_blas, "BYTE_PRODUCTS", False)
    rng = np.random.default_rng(3)
    a, b = integers(rng, (40, 400), 32768), integers(rng, (400, 300), 32768)
    a[1], b[:, 1] = -32768, -32768  # two such products are 2**31
    for mac in ("int32 wrap", "int20 wrap"):
        assert_sums(matmul(a, b, mac), expected(a, b, mac))


def long_sums() -> tuple[np.ndarray, np.ndarray]:
    """Return operands of 8 bits whose sums leave 32 bits, each with a last digit of its own."""
    a, b = np.full((7, 140_001), -128, np.float32), np.full((140_001, 17), -128, np.float32)
    a[:, 0], b[0] = np.arange(7), np.arange(17)
    return a, b


@needs_pairs
def test_sums_that_32_bits_do_not_hold_are_made_of_several(monkeypatch):
    monkeypatch.setattr(matmul_blas, "BYTE_PRODUCTS", False)
    a, b = long_sums()
    for x, y in ((a, b), (np.asfortranarray(a), np.asfortranarray(b))):
        got = matmul(x, y, "int48")
        assert got.max() > 2**31
        assert_sums(got, expected(a, b, "int48"))
    honest = matmul_pairs.multiply  # the deliberate break: one sum of 32 bits after all
    monkeypatch.setattr(
        matmul_pairs, "multiply", lambda left, right, k, out, _, *rest: honest(left, right, k, out, k, *rest)
    )
    with pytest.raises(AssertionError, match="differ"):
        assert_sums(matmul(a, b, "int48"), expected(a, b, "int48"))


@pytest.mark.parametrize("zero", [0, 1])
def test_codes_of_bytes_are_not_taken_for_codes_of_16_bits(zero, monkeypatch):
    """All zeros are a multiple of anything, which the product of bytes declines: the lanes of 16 bits come next."""
    monkeypatch.setattr(matmul_blas, "BYTE_PRODUCTS", True)
    rng = np.random.default_rng(7)
    operands = [integers(rng, shape, 128) for shape in ((64, 512), (512, 512))]
    formats = (parse_format("int8"),) * 2
    assert_sums(matmul(*operands, "int16 wrap", formats=formats), expected(*operands, "int16 wrap"))
    operands[zero] = np.zeros_like(operands[zero])  # its codes stand where others were
    assert_sums(matmul(*operands, "int16 wrap", formats=formats), expected(*operands, "int16 wrap"))


# ------------------------------------------------------------------------------------------------------- conversion
@pytest.mark.parametrize("bits", [8, 16])
def test_whole_numbers_are_what_the_operand_holds(bits):
    rng = np.random.default_rng(4)
    for shape in ((5, 16), (33, 37), (200, 65), (16, 640)):
        whole = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape)
        for lsb in (-30, 0, 9):
            x = (whole * 2.0**lsb).astype(np.float32)
            x[0, ::2], whole[0, ::2] = -0.0, 0
            for operand in (x, np.asfortranarray(x)):
                found = whole_numbers.whole_numbers(matrix(operand), bits)
                if found is None:
                    assert min(operand.shape) < 16
                    continue
                lines, width = (whole.T if found.across else whole), shape[0] if found.across else shape[1]
                assert np.array_equal(found.codes[:, :width] * 2.0 ** (found.lsb - lsb), lines)
                assert not found.codes[:, width:].any()[()] if bits == 16 and width % 16 == 0 else True
                assert found.largest == np.abs(x).max()


@pytest.mark.parametrize("value", [0.5, 1e-45, -1e-45, np.nan, np.inf, -np.inf, 3e38, 2.0**22, 2.0**23 + 1, "beyond"])
def test_a_value_that_is_no_whole_number_is_seen_wherever_it_stands(value):
    for bits in (8, 16):
        x = np.ones((40, 37), np.float32)
        for place in ((0, 0), (17, 5), (39, 36), (39, 31)):
            x[place] = 2 ** (bits - 1) if value == "beyond" else value
            found = whole_numbers.whole_numbers(matrix(x), bits)
            assert found is None or (found.lsb == -1 and value == 0.5)
            x[place] = 1
        assert whole_numbers.whole_numbers(matrix(x), bits) is not None


@needs_pairs
def test_a_conversion_that_proves_nothing_is_seen(monkeypatch):
    """The deliberate break: a value between two whole numbers passes."""
    monkeypatch.setattr(matmul_blas, "BYTE_PRODUCTS", False)
    a, b = np.ones((128, 256), np.float32), np.ones((256, 256), np.float32)
    a[100, 200] = 0.5
    wanted = a.astype(np.float64) @ b
    assert_sums(matmul(a, b, "fixed24.4"), wanted)
    honest = whole_numbers.convert
    monkeypatch.setattr(whole_numbers, "convert", lambda *arguments: max(honest(*arguments), 1.0))
    with pytest.raises(AssertionError, match="differ"):
        assert_sums(matmul(a, b, "fixed24.4"), wanted)


def test_norms_are_bounds():
    rng = np.random.default_rng(5)
    for bits, largest in ((8, 128), (16, 32768)):
        x = integers(rng, (50, 77), largest)
        for operand in (x, np.asfortranarray(x)):
            found = whole_numbers.whole_numbers(matrix(operand), bits)
            assert found is not None
            lines, length = (x.T, 50) if found.across else (x, 77)
            for along in (True, False):
                norms = np.linalg.norm(lines.astype(np.float64), axis=1 if along else 0)
                for got, true in (
                    (whole_numbers.largest_norm(found, along, length), norms.max()),
                    (whole_numbers.largest_norm(found, along, length, first_only=True), norms[0]),
                ):
                    assert true <= got <= true * 1.0001


# ------------------------------------------------------------------------------------------------- saturating sums
@pytest.mark.parametrize("shape", [(130, 301, 150), (97, 400, 171), (16, 4097, 65)])
def test_saturating_sums_of_whole_numbers_equal_a_plain_loop(shape, monkeypatch):
    m, k, n = shape
    used = []
    honest = int16_lanes.multiply
    monkeypatch.setattr(int16_lanes, "multiply", lambda *x: used.append(x[-1] is not None) or honest(*x))
    rng = np.random.default_rng(6)
    for bits, largest in ((16, 128), (12, 11), (9, 128)):
        a, b = integers(rng, (m, k), largest), integers(rng, (k, n), largest)
        total, high = np.zeros((m, n)), 2 ** (bits - 1) - 1
        for i in range(k):
            total = np.clip(total + a[:, i : i + 1] * b[i], -high - 1, high)
        for x in (a, np.asfortranarray(a)):
            for y in (b, np.asfortranarray(b)):
                assert_sums(matmul(x, y, f"int{bits}"), total)
    assert used == [True] * 12
