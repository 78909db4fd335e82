"""The criteria and cost formulas against the vectors of the authors' repository (CIFAR-10, ResNet-20 at 128/256/512).

Widths, ranges and the architecture are those of github charbel-sakr/Fixed-Point-Training; the totals in millions of
bits and thousands of millions of full adders are computed from them.
"""

from dataclasses import replace
from math import log2

import pytest

from hwsim.assignment.cost import LayerBits, LayerWork, fixed_point_cost, float_cost, full_adders
from hwsim.assignment.criteria import (
    CORRECTION,
    Grid,
    accumulator,
    activation_gradient,
    noise_offsets,
    weight_gradient,
    with_bits,
)
from hwsim.errors import SpecError

B_MIN = 3
OFFSETS_A = [5, 4, 4, 3, 3, 3, 3, 3, 4, 4, 4, 4, 3, 3, 4, 3, 2, 1, 0]
OFFSETS_W = [11, 10, 10, 10, 10, 11, 10, 11, 11, 11, 11, 11, 12, 11, 11, 11, 11, 11, 10, 10, 9, 7]
B_A = [8, 7, 7, 6, 6, 6, 6, 6, 7, 7, 7, 7, 6, 6, 7, 6, 5, 4, 3]
B_W = [14, 13, 13, 13, 13, 14, 13, 14, 14, 14, 14, 14, 15, 14, 14, 14, 14, 14, 13, 13, 12, 10]
B_GW = [11, 12, 12, *[11] * 15, 12, 12, 14, 14]
PDR_GW = [0.25, 0.0625, 0.0625, *[0.03125] * 11, *[0.015625] * 7, 0.25]
B_GA = [7, 10, 10, 11, 11, 11, 11, 10, 11, 11, 10, 9, 9, 10, 10, 11, 11, 11, 13, 15]
B_ACC = [9, 13, 13, 13, 13, 12, 13, 12, 12, 12, 12, 12, 11, 12, 13, 13, 13, 13, 15, 15, 18, 16]
LEAST_RATE = 0.001


def resnet() -> list[tuple[int, int, int, int]]:
    """Weights and multiply-accumulates of each layer, and which activation it reads (-1: the image) and writes."""
    layers = [(3 * 128 * 9, 1024, -1, 0)]
    channels, written = 128, 0
    for block in range(9):
        out, pixels = 128 << block // 3, 1024 >> 2 * (block // 3)
        if out != channels:  # the shortcut's strided convolution
            layers.append((channels * out * 9, pixels, written, written + 2))
        layers.append((channels * out * 9, pixels, written, written + 1))
        layers.append((out * out * 9, pixels, written + 1, written + 2))
        channels, written = out, written + 2
    layers.append((512 * 10, 1, written, written + 1))
    return [(weights, weights * pixels, read, wrote) for weights, pixels, read, wrote in layers]


WORK = [LayerWork(weights, macs) for weights, macs, _, _ in resnet()]


def bits_of_resnet(of_previous: bool) -> list[LayerBits]:
    """Widths layer by layer; `of_previous` takes the gradient of the activation that a layer reads, not writes."""
    found = []
    for index, (_, _, read, wrote) in enumerate(resnet()):
        activation = 8 if read < 0 else B_A[read]
        gradient = B_GA[max(read, 0) if of_previous else wrote]
        found.append(LayerBits(B_W[index], activation, B_GW[index], gradient, B_ACC[index]))
    return found


def test_widths_are_offsets_above_the_least() -> None:
    gains = {f"a{n}": 4.0**offset * 1e-5 for n, offset in enumerate(OFFSETS_A)}
    gains |= {f"w{n}": 4.0**offset * 1e-5 for n, offset in enumerate(OFFSETS_W)}
    widths = {name: offset + B_MIN for name, offset in noise_offsets(gains).items()}
    assert [widths[f"a{n}"] for n in range(19)] == B_A
    assert [widths[f"w{n}"] for n in range(22)] == B_W
    apart = noise_offsets({name: gain for name, gain in gains.items() if name.startswith("w")})
    assert [apart[f"w{n}"] + B_MIN for n in range(22)] != B_W  # one minimum over both kinds, not one for each


def test_offsets_are_rounded_to_the_nearest_bit() -> None:
    assert noise_offsets({"least": 1.0, "below": 4.0**1.49, "above": 4.0**1.51, "none": 0.0}) == {
        "least": 0, "below": 1, "above": 2, "none": 0,
    }  # fmt: skip
    with pytest.raises(SpecError, match="0 for every tensor"):
        noise_offsets({"w": 0.0})


def test_accumulators_are_the_authors() -> None:
    found = []
    for weight_bits, gradient_bits, reach in zip(B_W, B_GW, PDR_GW, strict=True):
        gradient = with_bits(gradient_bits, int(log2(reach)))
        grid = accumulator(with_bits(weight_bits, 0), gradient, LEAST_RATE)
        assert grid is not None
        assert grid.range == -weight_bits  # PDR_acc = 2^-B_W
        found.append(grid.bits)
    assert found == B_ACC
    later = accumulator(with_bits(14, 0), with_bits(11, -2), LEAST_RATE / 10)  # a decay further down needs more bits
    assert later is not None and later.bits > B_ACC[0]


def test_no_accumulator_where_nothing_is_ever_left() -> None:
    assert accumulator(with_bits(8, 0), with_bits(4, 0), 1.0) is None


def test_weight_gradients_cover_two_deviations_in_steps_of_a_quarter() -> None:
    largest, smallest = 0.01, 0.003
    grid = weight_gradient(largest, smallest)
    assert 2.0**grid.range >= 2 * CORRECTION * largest > 2.0 ** (grid.range - 1)
    assert 2.0**grid.step <= smallest / 4 < 2.0 ** (grid.step + 1)
    assert grid.bits == grid.range - grid.step + 1
    assert pytest.approx(10**0.5) == CORRECTION


def test_activation_gradients_add_no_more_noise_than_the_weight_gradients_have() -> None:
    grid = activation_gradient(1e-4, -12, 300.0)
    assert 2.0**grid.step * 300.0**0.5 <= 2.0**-12 < 2.0 ** (grid.step + 1) * 300.0**0.5
    assert 2.0**grid.range >= 8 * CORRECTION * 1e-4 > 2.0 ** (grid.range - 1)


def test_formats_have_the_ranges_and_steps_of_the_paper() -> None:
    weight = with_bits(8, 0).format
    assert (str(weight), weight.step) == ("fixed8.7", 2.0**-7)  # r = 1, D = 2^(1-B)
    activation = with_bits(6, 1, signed=False).format
    assert (str(activation), activation.step) == ("ufixed6.5", 2.0**-5)  # [0, 2): D = 2^(1-B) as well
    assert float(activation.largest) == 2 - 2.0**-5
    tiny = Grid(-11, -20).format
    assert (str(tiny), tiny.bits, tiny.step) == ("fixed10.20", 10, 2.0**-20)
    assert Grid(-11, -20).coarser() == Grid(-11, -19)


def test_costs_of_the_authors_network() -> None:
    assert sum(w.weights for w in WORK) == 18_588_032
    assert sum(w.macs for w in WORK) == 2_721_453_056
    assert [b.accumulator for b in bits_of_resnet(False)] == B_ACC
    fixed = fixed_point_cost(WORK, bits_of_resnet(of_previous=False))
    assert fixed.representational == 725_805_824
    assert fixed.communication == 216_575_104
    assert fixed.computational == 804_537_603_072  # each layer with the gradient at its own output
    assert float_cost(WORK).representational == 1_784_451_072
    assert float_cost(WORK).computational == 4_318_945_999_872
    assert float_cost(WORK).communication == 594_817_024


def test_the_published_computational_cost_aligns_gradients_one_layer_earlier() -> None:
    earlier = bits_of_resnet(of_previous=True)
    total = sum(
        w.macs * full_adders(b, input_gradient=index > 0)
        for index, (w, b) in enumerate(zip(WORK, earlier, strict=True))
    )
    assert total == 785_618_275_328


def test_costs_of_other_methods_on_the_same_network() -> None:
    def cost(*bits: int) -> tuple[float, float, float]:
        found = fixed_point_cost(WORK, [LayerBits(*bits)] * len(WORK))
        return found.representational / 1e6, found.computational / 1e9, found.communication / 1e6

    ours = bits_of_resnet(of_previous=False)
    wide = fixed_point_cost(WORK, [replace(bits, accumulator=32) for bits in ours])
    assert round(wide.representational / 1e6, 1) == 1062.0  # 32-bit accumulators
    binarized = cost(1, 1, 32, 23, 32)  # weights and activations of one bit, float gradients
    assert [round(value, 1) for value in binarized] == [1208.2, 127.9, 594.8]
    ternary = cost(32, 23, 2, 23, 32)  # weight gradients of two bits
    assert [round(ternary[0], 1), round(ternary[2], 1)] == [1226.8, 37.2]
