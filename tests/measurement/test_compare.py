"""Simulated against measured: the arithmetic of errors, splits and intervals, and a page from recorded or missing
files."""

import math
from pathlib import Path

import pytest

from hwsim.catalog import load_accelerator
from hwsim.measurement.cases import cuda_cases
from hwsim.measurement.compare import Comparison, Pair, bootstrap, compare, shape_against_table7, speed_ups, summarize
from hwsim.measurement.record import Check, Energy, Measurement, MeasurementFile, Timing
from hwsim.measurement.study import MeasuredStudy, study_sections
from hwsim.measurement.work import workload_of
from hwsim.simulation.engine import simulate

CHIP = load_accelerator("nvidia_h200")


def measured(case, time_us=100.0, energy_uj=None):
    energy = None if energy_uj is None else Energy(energy_uj, 400.0, 75.0, 10, 2.0)
    return Measurement(
        case.id,
        case.family,
        case.kernel,
        case.operation,
        case.dtype,
        dict(case.shape),
        case.group,
        1,
        1,
        1,
        Check("x", 0.0, 0.0, 1),
        Timing(time_us, time_us, time_us, 9, "events"),
        "2026-11-20T00:00:00Z",
        "c",
        energy=energy,
    )


def gemms(count):
    return [case for case in cuda_cases() if case.family == "dense_gemm" and case.group == "sample"][:count]


def pairs(ratios, time_us=100.0):
    return [
        Pair(measured(case, time_us), time_us * ratio, 1.0)
        for case, ratio in zip(gemms(len(ratios)), ratios, strict=True)
    ]


def test_errors_are_relative_above_20_us_and_absolute_below():
    long = summarize("x", pairs([1.1, 0.9, 1.3]))
    assert (long.rows, long.short_rows) == (3, 0)
    assert long.mape == pytest.approx(0.5 / 3) and long.bias == pytest.approx(0.1)
    short = summarize("x", pairs([1.1, 0.8], time_us=10.0))
    assert (short.rows, short.mape, short.mape_low, short.short_rows) == (0, None, None, 2)
    assert short.short_us == pytest.approx(1.5)
    assert summarize("x", []).mape is None


def test_the_interval_holds_the_mean_and_shrinks_with_more_shapes():
    few, many = pairs([1.05, 1.15] * 5), pairs([1.05, 1.15] * 50)
    low, high = bootstrap(few)
    assert low < 0.1 < high
    narrow_low, narrow_high = bootstrap(many)
    assert narrow_high - narrow_low < high - low
    assert bootstrap(few) == (low, high)  # a fixed seed


def test_rows_of_one_shape_are_drawn_together():
    one = pairs([1.1])[0]
    same_shape = [Pair(one.measurement, one.simulated_us * factor, 1.0) for factor in (1.0, 1.2, 1.4)]
    assert len(set(bootstrap(same_shape))) == 1  # one shape: every resample is the same


def test_the_worst_case_counts_half_like_double():
    comparison = Comparison(tuple(pairs([1.1, 0.45, 2.0, 1.0])), ())
    assert [round(pair.error, 2) for pair in comparison.worst(2)] == [-0.55, 1.0]


def test_a_split_keeps_shapes_whole_and_is_repeatable():
    comparison = Comparison(tuple(pairs([1.0] * 200)), ())
    fitted, held = comparison.held_out(0.5)
    assert len(fitted.pairs) + len(held.pairs) == 200 and 60 < len(held.pairs) < 140
    assert not {pair.shape_key for pair in fitted.pairs} & {pair.shape_key for pair in held.pairs}
    assert comparison.held_out(0.5)[1] == held and comparison.held_out(0.5, seed=1)[1] != held


def kinds():
    """One case of every family, operation, kernel and format."""
    seen = {}
    for case in cuda_cases():
        seen.setdefault((case.family, case.operation, case.kernel, case.dtype), case)
    return list(seen.values())


NO_MODEL = {"launch", "emulation"}


@pytest.mark.parametrize("case", kinds(), ids=lambda case: case.id)
def test_every_kind_of_kernel_has_a_workload_that_the_machine_takes_or_openly_none(case):
    workload = workload_of(measured(case))
    if case.family in NO_MODEL or case.kernel in ("torch_sparse", "sparse_2to4"):
        assert workload is None
        return
    result = simulate(workload, CHIP)
    assert result.time_us >= 0
    if case.family == "dense_gemm":
        assert result.macs == case["m"] * case["n"] * case["k"]


def test_top_k_work_grows_with_k_and_meets_dense_products_at_k_n():
    table = {
        case["kept"]: case
        for case in cuda_cases()
        if case.id.startswith("topk_backward/backward/torch/bfloat16/batch1024_out8192")
    }
    macs = {kept: simulate(workload_of(measured(case)), CHIP).macs for kept, case in table.items()}
    assert macs[64] == 2 * 64 * 8192 * 1024 and macs[8192] == 2 * 8192 * 8192 * 1024


def test_what_has_no_simulation_is_listed():
    cases = gemms(3)
    result = simulate(workload_of(measured(cases[0])), CHIP)
    comparison = compare([measured(case) for case in cases], {cases[0].id: result})
    assert [pair.measurement.id for pair in comparison.pairs] == [cases[0].id]
    assert comparison.unmodeled == (cases[1].id, cases[2].id)
    assert comparison.pairs[0].simulated_us == result.time_us


def topk_curve(times, dense=1000.0):
    entries = []
    for case in cuda_cases():
        if (
            case.family == "topk_backward"
            and case.operation == "backward"
            and case.dtype == "bfloat16"
            and case["out"] == 8192
            and not case.energy
        ):
            if case.kernel == "dense":
                entries.append(measured(case, dense))
            elif case.kernel == "torch" and case["kept"] in times:
                entries.append(measured(case, times[case["kept"]]))
    return entries


def test_break_even_lies_between_the_points_that_it_is_read_from():
    (curve,) = speed_ups(topk_curve({64: 100.0, 1024: 500.0, 4096: 2000.0}))
    assert dict(curve.ratios) == {64: 10.0, 1024: 2.0, 4096: 0.5}
    assert curve.break_even == pytest.approx(2048)  # twice as fast to half as fast: the middle on logarithmic axes
    (always,) = speed_ups(topk_curve({64: 100.0, 1024: 500.0}))
    assert always.break_even is None
    assert speed_ups(topk_curve({64: 1.0})[1:]) == ()  # no dense time, no ratio
    rows = shape_against_table7(curve)
    assert (
        rows[3][0] == 64 and rows[3][1] == pytest.approx(21.4, abs=0.05) and rows[3][2] == 10.0 and rows[0][2] is None
    )


STUDY = MeasuredStudy(name="x", accelerator="nvidia_h200")


def test_without_a_file_the_page_states_the_gap(tmp_path):
    (section,) = study_sections(STUDY, tmp_path, lambda workload: simulate(workload, CHIP))
    assert section.verdict == "not comparable"
    assert "no measurement on the real device exists" in section.text and "hwsim.measurement.suite" in section.text


def synthetic(tmp_path: Path, factor: float, energy_factor: float | None = None) -> Path:
    """A file whose times (and energies, if asked for) are the simulated ones times a factor."""
    file = MeasurementFile(device={"name": "synthetic", "kind": "cuda", "versions": {"torch": "0"}})
    for case in [*gemms(40), *[c for c in cuda_cases() if c.group == "table7" and c.family == "topk_backward"][:40]]:
        result = simulate(workload_of(measured(case)), CHIP)
        energy_uj = None if energy_factor is None else result.energy_pj / 1e6 * energy_factor
        file.add(measured(case, result.time_us * factor, energy_uj))
    file.tensor_core["a"] = {"id": "a", "mismatches": 0, "dots": 10, "layer": {"output": 0}, "against": "hwsim.matmul"}
    file.write(tmp_path / "measurements.json")
    return tmp_path


@pytest.mark.parametrize(("factor", "mape", "verdict"), [(1.0, 0.0, "passed"), (1.25, 0.2, "failed")])
def test_the_page_finds_the_error_that_was_put_in(tmp_path, factor, mape, verdict):
    sections = study_sections(STUDY, synthetic(tmp_path, factor), lambda workload: simulate(workload, CHIP))
    titles = [section.title for section in sections]
    assert (
        titles[0] == "What was measured"
        and "Simulated against measured" in titles
        and "Tensor cores, bit for bit" in titles
    )
    table = next(s for s in sections if s.title == "Simulated against measured").tables[0]
    dense = dict(zip([column.name for column in table.columns], table.rows[0], strict=True))
    assert dense["kernels"] == "dense GEMMs" and dense["verdict"] == verdict
    by_title = {section.title: section.verdict for section in sections}
    assert by_title["Simulated against measured"] == verdict and by_title["Tensor cores, bit for bit"] == "passed"
    if dense["MAPE"] is not None:
        assert math.isclose(dense["MAPE"], mape, abs_tol=1e-9)


@pytest.mark.parametrize(("factor", "verdict"), [(1.05, "passed"), (1.5, "failed")])
def test_energy_is_judged_too(tmp_path, factor, verdict):
    sections = study_sections(STUDY, synthetic(tmp_path, 1.0, factor), lambda workload: simulate(workload, CHIP))
    assert {section.title: section.verdict for section in sections}["Simulated against measured"] == verdict


def test_the_page_shows_what_top_k_gains(tmp_path):
    sections = study_sections(STUDY, synthetic(tmp_path, 1.0), lambda workload: simulate(workload, CHIP))
    (section,) = [section for section in sections if section.title.startswith("What top-k gains")]
    published = next(table for table in section.tables if table.title.startswith("Speed-up over k"))
    assert [row[0] for row in published.rows] == [8, 16, 32, 64, 128, 256, 512]
