"""Figures say what the results say: their numbers are compared with the records, and drawn ones with plotly's rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsim.errors import SpecError
from hwsim.records import SimulatedOp
from hwsim.report import figures
from hwsim.report.drawing import draw, log_ticks, numbers
from hwsim.report.palette import Palette
from hwsim.section import Axis, Figure, ReferenceLine, Series


def all_figures(results, section):
    found = [*section.figures, figures.kept_shares(results)]
    for machine in results.machines:
        found += [figures.tradeoff(results, machine, what) for what in ("energy", "cycles")]
        found += [figures.by_pass(results, machine, what) for what in ("energy", "cycles")]
        found += [figures.energy_ranges(results, machine), figures.stalls(results, machine)]
        found.append(figures.roofline(results, machine))
        found += [figures.by_layer(results, machine, c.name, "energy") for c in results.configurations]
    found += [figures.training_curves(results, "dev_accuracy", "dev accuracy", True)]
    return [figure for figure in found if figure is not None]


def test_plotly_accepts_every_trace_and_layout(sample, section):
    graph_objects = pytest.importorskip("plotly.graph_objects")
    palette = Palette(sample.configurations, sample.baseline)
    drawn = [draw(figure, palette) for figure in all_figures(sample, section)]
    assert len(drawn) > 20
    for drawing in drawn:
        graph_objects.Figure(data=drawing.data, layout=drawing.layout)  # refuses unknown and wrong properties


def test_a_wrong_trace_would_be_refused_by_plotly(section):
    graph_objects = pytest.importorskip("plotly.graph_objects")
    drawing = draw(section.figures[0], Palette())
    with pytest.raises(ValueError, match="symbl"):
        graph_objects.Figure(data=[{**drawing.data[-1], "symbl": "circle"}], layout=drawing.layout)


@pytest.mark.parametrize("what", ["cycles", "energy"])
def test_passes_add_up_to_the_step(sample, what):
    summary = sample.summary()
    scale = {"": 1.0, "thousand": 1e3, "nJ": 1e3, "µJ": 1e6}
    for machine in sample.machines:
        figure = figures.by_pass(sample, machine, what)
        for configuration in sample.configurations:
            place = figure.series[0].x.index(configuration.name)
            total = sum(series.y[place] for series in figure.series) * scale[figure.y.unit]
            step = summary.cost_of(configuration.name, machine.name).step
            assert total == pytest.approx(step.cycles if what == "cycles" else step.energy_pj.nominal)


def test_layers_add_up_to_the_step(sample):
    machine = sample.machines[0]
    figure = figures.by_layer(sample, machine, "topk k=10", "cycles")
    total = sum(value for series in figure.series for value in series.y)
    assert total == pytest.approx(sample.summary().cost_of("topk k=10", machine.name).step.cycles)


def test_many_layers_are_cut_without_losing_any_cost(sample):
    record = sample.simulations[0]
    ops = [
        SimulatedOp(id=f"l{i}", layer=f"layer{i}", phase="forward", kind="gemm", gemm="output", cycles=float(i + 1))
        for i in range(100)
    ]
    results = sample.model_copy(update={"simulations": (record.model_copy(update={"ops": tuple(ops)}),)})
    figure = figures.by_layer(results, sample.machines[0], record.configuration, "cycles")
    assert len(figure.series[0].x) == 24
    assert sum(figure.series[0].y) == sum(range(1, 101))
    assert "77 smallest layers" in figure.caption


def test_every_op_belongs_to_a_drawn_pass(sample):
    for record in sample.simulations:
        assert {figures.pass_of(op) for op in record.ops} <= set(figures.PASSES)


def test_stalls_and_busy_fill_the_step(sample):
    figure = figures.stalls(sample, sample.machines[0])
    for place in range(len(figure.series[0].x)):
        assert sum(series.y[place] for series in figure.series) == pytest.approx(1.0)


def test_components_add_up_to_the_nominal_energy(sample):
    figure = figures.energy_ranges(sample, sample.machines[0])
    *bars, whole = figure.series
    for place, nominal in enumerate(whole.y):
        assert sum(series.y[place] for series in bars) == pytest.approx(nominal)
        assert whole.low[place] <= nominal <= whole.high[place]


def test_a_rival_with_the_cost_of_an_earlier_bar_is_drawn_once(sample):
    names = [name for name, _ in figures.step_bars(sample, sample.machines[0])]
    assert names == ["dense", "fp8", "topk k=10", "topk k=40", "fp8_topk"]
    alone = sample.model_copy(update={"configurations": sample.configurations[2:3]})
    assert [name for name, _ in figures.step_bars(alone, sample.machines[0])] == ["topk k=10, unpruned", "topk k=10"]


def test_no_gemm_lies_above_its_roof(sample):
    for machine in sample.machines:
        figure = figures.roofline(sample, machine)
        roofs = [series for series in figure.series if series.color == "roof"]
        peak = max(max(roof.y) for roof in roofs)
        for series in figure.series:
            if series.color != "roof":
                for x, y in zip(series.x, series.y, strict=True):
                    assert y <= min(peak, x * machine.dram_bytes_per_cycle) * (1 + 1e-9)


def test_a_gemm_above_its_roof_is_explained(sample):
    machine = sample.machines[0]
    assert "above the slope" not in figures.roofline(sample, machine).caption
    record = sample.simulations[0]
    quick = record.ops[0].model_copy(update={"cycles": record.ops[0].bytes["dram"] / machine.dram_bytes_per_cycle / 2})
    results = sample.model_copy(update={"simulations": (record.model_copy(update={"ops": (quick, *record.ops[1:])}),)})
    assert "above the slope" in figures.roofline(results, machine).caption


def test_curves_are_means_and_ranges_over_seeds():
    steps, means, lows, highs = figures.mean_curve([((1.0, 2.0), (0.5, 0.9)), ((1.0, 2.0), (0.7, None))])
    assert (steps, means, lows, highs) == ([1.0, 2.0], [pytest.approx(0.6), 0.9], [0.5, 0.9], [0.7, 0.9])


POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12)


@given(POINTS)
def test_the_pareto_front_holds_exactly_what_nothing_beats(points):
    front = figures.pareto_front(points)
    shown = {points[i] for i in front}
    beaten = {
        p for p in points if any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)
    }  # cheaper or equal and better or equal, and not the same
    assert shown == set(points) - beaten
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


@given(st.floats(1e-9, 1e9), st.floats(1.0, 1e9))
def test_log_axes_have_a_readable_number_of_ticks(low, factor):
    ticks = log_ticks(low, low * factor)
    assert 3 <= len(ticks) <= 16
    assert ticks == sorted(set(ticks))


def test_shares_are_drawn_and_listed_as_percent():
    figure = Figure(
        title="f", x=Axis(label="x"), y=Axis(label="y", percent=True), series=[Series(name="s", x=[1.0], y=[0.25])]
    )
    assert draw(figure, Palette()).data[0]["y"] == [25.0]
    table = numbers(figure)
    assert table.columns[-1].kind == "percent"
    assert table.rows[0][-1] == 0.25


def test_the_numbers_of_a_figure_hold_every_point(sample):
    figure = figures.tradeoff(sample, sample.machines[0], "energy")
    rows = numbers(figure).rows
    assert len(rows) == len(sample.configurations)
    for row, series in zip(rows, figure.series[1:], strict=True):
        assert row[0] == series.name
        assert set(series.x) | set(series.y) | set(series.low) | set(series.x_high) <= set(row)


def test_long_tables_of_numbers_say_that_they_are_cut():
    values = [float(i) for i in range(1000)]
    figure = Figure(title="f", x=Axis(label="x"), y=Axis(label="y"), series=[Series(name="s", x=values, y=values)])
    table = numbers(figure)
    assert len(table.rows) == 200
    assert "first 200 of 1,000" in table.note


def test_a_reference_line_on_a_log_axis_is_labeled_where_it_lies():
    figure = Figure(
        title="f",
        x=Axis(label="x", scale="log"),
        y=Axis(label="y", scale="log"),
        series=[Series(name="s", x=[1.0, 10.0], y=[5.0, 50.0])],
        lines=[ReferenceLine(label="gate", at=100.0)],
    )
    layout = draw(figure, Palette()).layout
    assert layout["shapes"][0]["y0"] == 100.0
    assert layout["annotations"][0]["y"] == 2.0  # plotly wants the exponent there


def test_each_configuration_keeps_its_color_and_none_share_one(sample):
    palette = Palette(sample.configurations, sample.baseline)
    names = [configuration.name for configuration in sample.configurations]
    colors = [palette.color(name, 0) for name in names]
    assert len(set(colors)) == len(colors)
    assert colors == [palette.color(name, 5) for name in names]


@pytest.mark.parametrize(
    "fields",
    [
        {"x": [1.0, 2.0], "y": [1.0]},
        {"x": [1.0], "y": [1.0], "low": [0.5]},
        {"x": [1.0], "y": [1.0], "low": [0.5, 0.6], "high": [1.5, 1.6]},
        {"x": [1.0], "y": [1.0], "style": "band"},
        {"x": [1.0], "y": [float("nan")]},
    ],
)
def test_series_that_cannot_be_drawn_are_refused(fields):
    with pytest.raises(SpecError):
        Series(name="s", **fields)
