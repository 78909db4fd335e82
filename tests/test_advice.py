"""Every rule of the advice, on both sides of its threshold; and that what it advises helps."""

import numpy as np
import pytest

import hwsim
from hwsim import Cast, advise
from hwsim.advice import CHUNK, LOST_UPDATES, SATURATION, SWAMPED, UNDERFLOW, fitting_shift, held_binades, losses
from hwsim.arithmetic.variance_retention import needed_bits
from hwsim.training.profile import GradientRow, Profile, SumRow, TensorRow, UpdateRow


def tensor(cast="float8_e4m3fn", nonzero=1000, step=0, lowest=-12, exponents=(1000,), **counts):
    return TensorRow(
        step=step, layer="conv3", gemm="grad_input", role="gradient", cast=cast, count=1000, nonzero=nonzero,
        saturated=counts.get("saturated", 0), underflowed=counts.get("underflowed", 0),
        not_finite=counts.get("not_finite", 0), snr_db=counts.get("snr_db"), lowest_exponent=lowest,
        exponents=exponents,
    )  # fmt: skip


def sums(mac="e8m3", terms=10_000, length=4096, swamped=0, overflowed=0, stochastic=False):
    return SumRow(
        step=0, layer="fc1", gemm="grad_weight", mac=mac, length=length, terms=terms, swamped=swamped,
        overflowed=overflowed, stochastic=stochastic,
    )  # fmt: skip


def rules(**parts):
    return [advice.rule for advice in advise(Profile(**parts))]


def only(**parts):
    (advice,) = advise(Profile(**parts))
    return advice


def test_a_profile_without_rows_asks_for_nothing():
    assert advise(Profile()) == ()


def test_underflow():
    enough, little = int(UNDERFLOW * 1000) + 1, int(UNDERFLOW * 1000)
    assert rules(tensors=[tensor(underflowed=enough)]) == ["underflow"]
    assert rules(tensors=[tensor(underflowed=little)]) == []
    assert rules(tensors=[tensor(underflowed=enough, cast="float8_e4m3fn stochastic")]) == []


def test_underflow_says_how_much_where_and_what_to_do():
    rows = [tensor(step=0, underflowed=110), tensor(step=700, underflowed=510, lowest=-15, exponents=(510, 490))]
    advice = only(tensors=rows)
    assert advice.place == "conv3 grad_input gradient"
    assert advice.text == (
        "conv3 grad_input gradient: 31 % underflow of the gradient (float8_e4m3fn) (51 % at step 700); scale by 2^5 "
        "(loss_scale, or scaling of the gradient): 0 % underflow would be left, or take float8_e5m2."
    )


def test_saturation():
    over, under = int(SATURATION * 1000) + 1, int(SATURATION * 1000)
    high = {"lowest": 9, "exponents": (1000,)}
    advice = only(tensors=[tensor(saturated=over, **high)])
    assert advice.rule == "saturation" and "scale by 2^-1" in advice.text and "take float8_e5m2" in advice.text
    assert rules(tensors=[tensor(saturated=under, **high)]) == []


def test_values_too_far_apart_for_any_scale_are_said_to_be():
    wide = {"lowest": -40, "exponents": (500, *[0] * 50, 500)}
    fixed = only(tensors=[tensor("fixed8.7", saturated=500, **wide)])
    assert "span 52 binades" in fixed.text and "2^" not in fixed.text


def test_fixed_point_is_offered_another_point_or_more_bits():
    near = only(tensors=[tensor("fixed8.6", underflowed=900, lowest=-9, exponents=(900, 0, 0, 0, 100))])
    assert "scale by 2^2" in near.text and "take fixed8.8" in near.text
    apart = only(tensors=[tensor("fixed8.6", underflowed=900, lowest=-10, exponents=(900, 0, 0, 0, 0, 0, 0, 0, 100))])
    assert "2^" not in apart.text and "take fixed9.9" in apart.text


def test_noise():
    assert rules(tensors=[tensor(snr_db=9.9)]) == ["noise"]
    assert rules(tensors=[tensor(snr_db=10.1)]) == []
    assert "2 more bits give about 20 dB" in only(tensors=[tensor(snr_db=8.0)]).text
    assert rules(tensors=[tensor(snr_db=3.0, underflowed=500)]) == ["underflow"], "the cause is said, not the effect"


def test_not_finite():
    advice = only(tensors=[tensor(not_finite=1)])
    assert advice.rule == "not finite" and "overflow: saturate" in advice.text
    assert "before this cast" in only(tensors=[tensor("float8_e4m3fn saturate", not_finite=1)]).text
    assert rules(tensors=[tensor(not_finite=0)]) == []


def test_swamped_adds():
    many, few = int(SWAMPED * 10_000) + 1, int(SWAMPED * 10_000)
    advice = only(sums=[sums(swamped=many)])
    assert advice.rule == "swamped adds"
    assert f"take {needed_bits(4096, 7)} mantissa bits instead of 3" in advice.text
    assert f"chunks of {CHUNK}, for which {needed_bits(4096, 7, CHUNK)} do" in advice.text
    assert rules(sums=[sums(swamped=few)]) == []
    assert rules(sums=[sums(swamped=many, stochastic=True)]) == []


def test_swamped_adds_in_a_wide_enough_accumulator_are_no_trouble():
    width = needed_bits(4096, 7)
    assert rules(sums=[sums(f"e8m{width - 1}", swamped=9000)]) == ["swamped adds"]
    assert rules(sums=[sums(f"e8m{width}", swamped=9000)]) == []
    chunked = needed_bits(4096, 7, CHUNK)
    assert rules(sums=[sums(f"e8m{chunked}, order=chunked({CHUNK})", swamped=9000)]) == []
    assert rules(sums=[sums(f"e8m3, order={order}", swamped=9000) for order in ("pairwise", "exact", "kahan")]) == []


def test_products_under_the_step_of_a_fixed_accumulator():
    assert "more fraction bits" in only(sums=[sums("fixed16.8", swamped=9000)]).text


def test_overflow_of_sums():
    advice = only(sums=[sums("fixed12.8 saturate", overflowed=2)])
    assert advice.rule == "overflow of sums" and "fixed16.8" in advice.text
    assert "more exponent bits" in only(sums=[sums("e4m3", overflowed=2)]).text
    assert rules(sums=[sums("fixed12.8 saturate", overflowed=1)]) == []


def update(lost, cast="fixed8.6", compensated=False):
    return UpdateRow(step=0, parameter="fc1.weight", cast=cast, updates=1000, lost=lost, compensated=compensated)


def test_lost_updates():
    many = int(LOST_UPDATES * 1000) + 1
    assert "compensation" in only(updates=[update(many)]).text
    assert rules(updates=[update(many - 1)]) == []
    assert rules(updates=[update(many, compensated=True)]) == []
    assert rules(updates=[update(many, "fixed8.6 stochastic")]) == []


def gradient(cosine, norm_ratio, layer="conv3"):
    return GradientRow(step=0, layer=layer, cosine=cosine, norm_ratio=norm_ratio)


def test_gradients():
    noisy = tensor(snr_db=12.0)
    advice = only(gradients=[gradient(0.8, 1.0)], tensors=[noisy])
    assert advice.rule == "gradient" and "37° off" in advice.text and "cosine 0.80" in advice.text
    assert "grad_input gradient (float8_e4m3fn) adds the most noise: 12 dB" in advice.text
    assert rules(gradients=[gradient(0.91, 1.0)]) == []
    assert "0.50 times the length" in only(gradients=[gradient(0.99, 0.5)]).text
    assert rules(gradients=[gradient(0.99, 0.81), gradient(0.99, 1.24)]) == []
    assert rules(gradients=[gradient(0.5, 1.0, layer="")]) == []


def test_the_worst_comes_first():
    found = rules(tensors=[tensor(underflowed=300), tensor().model_copy(update={"layer": "conv1", "not_finite": 3})])
    assert found == ["not finite", "underflow"]


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "fixed8.6", "float8_e4m3fn toward_zero"])
@pytest.mark.parametrize("scale", [2.0**-14, 2.0**-9, 1.0, 2.0**9])
def test_predicted_losses_are_those_of_the_cast(name, scale):
    x = (np.random.default_rng(0).normal(size=20_000) * scale).astype(np.float32)
    cast, exponents = Cast.parse(name), {}
    for e in np.frexp(x[x != 0])[1] - 1:
        exponents[int(e)] = exponents.get(int(e), 0) + 1
    for shift in (0, 3, -3):
        moved = x * np.float32(2.0**shift)
        stored = hwsim.quantize(moved, cast.format, cast.rounding, overflow="saturate")
        below, beyond = losses(exponents, cast, shift)
        assert below == pytest.approx(np.mean(stored == 0), abs=1e-4)
        assert beyond == pytest.approx(np.mean(np.abs(moved) > cast.format.largest), abs=0.12)


def test_the_binades_that_a_format_holds():
    assert held_binades("float8_e4m3fn") == (-10, 8)  # half of 2^-9 and more rounds up to it
    assert held_binades("float8_e4m3fn toward_zero") == (-9, 8)
    assert held_binades("fixed8.6") == (-7, 0)
    assert held_binades("mxfp8_e4m3") is None


def test_the_advised_scale_cures_the_underflow():
    x = (np.random.default_rng(0).normal(size=20_000) * 2.0**-13).astype(np.float32)
    exponents = {}
    for e in np.frexp(x)[1] - 1:
        exponents[int(e)] = exponents.get(int(e), 0) + 1
    shift = fitting_shift(exponents, Cast("float8_e4m3fn"), 1)
    assert np.mean(hwsim.quantize(x, "float8_e4m3fn") == 0) > 0.9
    assert np.mean(hwsim.quantize(x * np.float32(2.0**shift), "float8_e4m3fn") == 0) <= 0.01
    assert np.mean(hwsim.quantize(x * np.float32(2.0 ** (shift - 1)), "float8_e4m3fn") == 0) > 0.01
