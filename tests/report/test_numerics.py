"""The page of a profiled run: advice and heat maps say what results.json holds, and only that."""

import re

import pytest

from hwsim.advice import advise
from hwsim.report import numerics
from hwsim.report.heat_map import HeatMap, Histogram, heat_map, histograms
from hwsim.report.page import draw_page
from hwsim.training.profile import GradientRow, Profile, SumRow, TensorRow, UpdateRow

STEPS = (0, 50, 1100)
HOSTILE = "<img src=x onerror=alert(1)>"


def make_profile(layer="conv3"):
    tensors, sums, updates, gradients = [], [], [], []
    for place, step in enumerate(STEPS):
        tensors.append(
            TensorRow(
                step=step, layer=layer, gemm="grad_input", role="gradient", cast="float8_e4m3fn", count=1000,
                nonzero=800, saturated=0, underflowed=100 * (place + 1), not_finite=0, snr_db=20.0 - 6 * place,
                lowest_exponent=-13, exponents=(200, 0, 300, 300),
            )
        )  # fmt: skip
        tensors.append(
            TensorRow(
                step=step, layer="clean", gemm="output", role="input", cast="mxfp8_e4m3", count=10, nonzero=10,
                underflowed=0, not_finite=0, snr_db=55.0, lowest_exponent=0, exponents=(10,),
            )
        )  # fmt: skip
        sums.append(
            SumRow(step=step, layer="fc", gemm="output", mac="e8m3", length=4096, terms=1000, swamped=412, overflowed=0)
        )
        updates.append(UpdateRow(step=step, parameter="fc.weight", cast="fixed8.6", updates=1000, lost=873))
        gradients.append(GradientRow(step=step, layer=layer, cosine=0.875 - 0.01 * place, norm_ratio=1.125))
        gradients.append(GradientRow(step=step, layer="", cosine=None, norm_ratio=None))
    return Profile(steps=STEPS, tensors=tensors, sums=sums, updates=updates, gradients=gradients)


@pytest.fixture
def profiled(build):
    results = build(configurations=("dense", "fp8"))
    trials = [
        trial.model_copy(update={"training": trial.training.model_copy(update={"profile": make_profile()})})
        if trial.configuration == "fp8"
        else trial
        for trial in results.trials
    ]
    return results.model_copy(update={"trials": tuple(trials)})


def cells(page, title):
    """Rows of the table under a heading: name -> cells as text."""
    table = re.search(rf"<h3>{re.escape(title)}</h3>.*?</table>", page, re.DOTALL).group(0)
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', table, re.DOTALL)
    return {name: re.findall(r"<td[^>]*>(.*?)</td>", row) for name, row in rows}


def test_a_page_without_a_profile_has_no_such_part(sample):
    assert "What the numbers did" not in draw_page(sample)


def test_the_advice_stands_on_the_page_in_its_order(profiled):
    page = draw_page(profiled)
    assert "What the numbers did" in page and 'href="#numerics"' in page
    said = re.findall(r'<li><span class="rule">(.*?)</span> (.*?)</li>', page)
    expected = [(one.rule, one.text) for one in advise(make_profile())]
    assert said == expected and {rule for rule, _ in said} >= {"underflow", "swamped adds", "lost updates", "gradient"}


def test_heat_maps_hold_the_recorded_numbers_by_step(profiled):
    page = draw_page(profiled)
    assert cells(page, "Underflow of casts") == {"conv3 grad_input gradient": ["12.5", "25.0", "37.5"]}
    assert cells(page, "Signal to noise of casts (dB)") == {"conv3 grad_input gradient": ["20", "14", "8"]}
    assert cells(page, "Swamped adds") == {"fc output (e8m3)": ["41.2"] * 3}
    assert cells(page, "Lost updates") == {"fc.weight (fixed8.6)": ["87.3"] * 3}
    cosines = cells(page, "Gradient beside float32&#x27;s: cosine")
    assert cosines == {"conv3": ["0.875", "0.865", "0.855"], "whole network": ["–"] * 3}
    assert "Saturation of casts" not in page and "Overflow of sums" not in page, "nothing happened there"
    assert "step 1,100" in page


def test_deeper_color_stands_for_worse(profiled):
    page = draw_page(profiled)
    table = re.search(r"<h3>Underflow of casts</h3>.*?</table>", page, re.DOTALL).group(0)
    depths = [float(depth) for depth in re.findall(r"rgba\(196,78,0,([\d.]+)\)", table)]
    assert depths == sorted(depths) and depths[0] < depths[-1] <= 0.62


def test_names_are_escaped(build):
    results = build(configurations=("dense",))
    training = results.trials[0].training.model_copy(update={"profile": make_profile(HOSTILE)})
    trials = (results.trials[0].model_copy(update={"training": training}), *results.trials[1:])
    assert HOSTILE not in draw_page(results.model_copy(update={"trials": trials}))


def test_one_trial_of_a_configuration_is_shown(profiled):
    assert [(name, seed) for name, seed, _ in numerics.profiled(profiled)] == [("fp8", 0)]


def test_nothing_to_advise_is_said():
    assert "No rule of the advice fires" in numerics.numbers(Profile(steps=(0,)), 0)


def test_histograms_frame_what_the_format_cannot_hold():
    html = histograms("title", [Histogram("place", -3, (0.25, 0.0, 0.75), (-2, 0))], "note")
    row = re.search(r"<tr><th scope=\"row\">place</th>(.*?)</tr>", html).group(1)
    binades = re.findall(r"<td([^>]*)>", row)
    assert len(binades) == 3 and 'class="out"' in binades[0] and "25.00 %" in binades[0]
    assert "out" not in binades[1] and "title" not in binades[1] and "75.00 %" in binades[2]


def test_a_cell_without_a_number_has_no_color():
    html = heat_map(HeatMap("t", "c", ["a", "b"], [("r", [None, 1.0])], str, lambda value: value))
    assert '<td class="num">–</td>' in html and "rgba" in html
