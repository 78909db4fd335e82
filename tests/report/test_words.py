"""Numbers as people read them, at the places where rounding and units change."""

import pytest

from hwsim.records import EnergyRange
from hwsim.report import words
from hwsim.summary import Spread


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (None, None, "–"),
        (0, None, "0"),
        (0.0, None, "0"),
        (12345, None, "12,345"),
        (1234.5678, None, "1,235"),
        (12.345678, None, "12.35"),
        (-0.5, None, "−0.5000"),
        (0.00001234, None, "1.234e-05"),
        (98.005, 1, "98.0"),
        (float("inf"), None, "–"),
    ],
)
def test_numbers(value, digits, expected):
    assert words.number(value, digits) == expected


@pytest.mark.parametrize(
    ("value_pj", "expected"),
    [(None, "–"), (0.0, "0 pJ"), (999.9, "999.9 pJ"), (1000.0, "1 nJ"), (2.5e6, "2.500 µJ"), (3.21e15, "3.210 kJ")],
)
def test_energy_takes_the_unit_that_fits(value_pj, expected):
    assert words.energy_with_unit(value_pj) == expected


@pytest.mark.parametrize(("value_us", "expected"), [(0.5, "500 ns"), (1.0, "1 µs"), (1500.0, "1.500 ms"), (2e6, "2 s")])
def test_time_takes_the_unit_that_fits(value_us, expected):
    assert words.time_with_unit(value_us) == expected


def test_a_range_has_one_unit():
    text = words.energy_range(EnergyRange(low=900.0, nominal=1000.0, high=2000.0))
    assert text.replace(words.UNBROKEN, " ") == "0.9000 to 2 nJ"


def test_counts_are_full_up_to_five_digits():
    assert words.count(99_999) == "99,999"
    assert words.count(123_456) == "123.5 thousand"
    assert words.count(7.5e6) == "7.500 million"


@pytest.mark.parametrize(("gain", "expected"), [(None, "–"), (2.414, "2.41×"), (21.44, "21.4×"), (308.4, "308×")])
def test_gains(gain, expected):
    assert words.ratio(gain) == expected


def test_what_is_no_gain_is_not_written_as_one():
    assert words.gain(1.25, "fewer") == "1.25× fewer"
    assert words.gain(0.8, "fewer") == "1.25× more"
    assert words.gain(None, "less") == "–"


def test_accuracy_states_a_spread_only_where_there_is_one():
    assert words.accuracy(Spread.of([0.97, 0.98])) == "97.50 ± 0.71 %"
    assert words.accuracy(Spread.of([0.97])) == "97.00 %"
    assert words.accuracy(None) == "–"


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0031, "+0.31 points"), (-0.0031, "−0.31 points"), (0.00001, "0.00 points"), (None, "–")],
)
def test_differences_have_a_sign_unless_they_round_to_zero(share, expected):
    assert words.points(share) == expected


def test_units_are_written_with_their_signs():
    assert [words.unit(text) for text in ("us", "uJ", "ms", "", "KiB")] == ["µs", "µJ", "ms", "", "KiB"]
