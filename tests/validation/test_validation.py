"""Validation: fits stay in their ranges and never see what they are judged on; the shipped machines keep the gates."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from hwsim.catalog import load_accelerator
from hwsim.errors import SpecError
from hwsim.spec import load_yaml
from hwsim.validation import compare, conformance
from hwsim.validation.chip_energy import modules
from hwsim.validation.compare import Fitting, halves, interval, judge, thinned
from hwsim.validation.fit import search, setting, with_setting
from hwsim.validation.meprop import TABLE_7_MS, TABLE_8_MS, beside, one_layer, whole_backward
from hwsim.validation.rows import data_folder, read_rows
from hwsim.validation.run import run_study
from hwsim.validation.study import Study, Table

FILE = Path(__file__).resolve().parents[2] / "reports" / "validation" / "experiment.yaml"
needs_data = pytest.mark.skipif(
    not (Path(os.environ.get("HWSIM_DATA", "/nowhere")) / "gpu_measured").is_dir(),
    reason="needs HWSIM_DATA/gpu_measured",
)


@pytest.fixture(scope="module")
def study() -> Study:
    return load_yaml(FILE, Study)


def test_search_finds_a_minimum_inside_its_ranges():
    def loss(values):
        return abs(values["x"] - 0.3) + abs(values["y"] - 5)

    found = search(loss, {"x": 0.9, "y": 0.0}, {"x": (0.0, 1.0), "y": (0.0, 4.0)})
    assert found["x"] == pytest.approx(0.3, abs=0.02)
    assert found["y"] == 4.0


def test_settings_reach_nested_numbers_and_name_wrong_ones():
    machine = load_accelerator("nvidia_v100")
    changed = with_setting(machine, "memories.l2.bytes_per_cycle", 999.0)
    assert setting(changed, "memories.l2.bytes_per_cycle") == 999.0
    assert changed.memories[0] == machine.memories[0]
    assert setting(machine, "tiled.convolution.fallback_efficiency") == machine.tiled.convolution.fallback_efficiency
    with pytest.raises(SpecError, match="Did you mean 'l2'"):
        with_setting(machine, "memories.l22.bytes_per_cycle", 1.0)
    with pytest.raises(SpecError, match="no number"):
        setting(machine, "dram.kind")


def test_groups_are_never_torn_apart():
    groups = [(str(i // 3),) for i in range(60)]
    first = halves(groups, seed=5)
    assert first.sum() == 30
    for group in set(groups):
        sides = {bool(side) for side, name in zip(first, groups, strict=True) if name == group}
        assert len(sides) == 1
    assert (first != halves(groups, seed=6)).any()


def test_intervals_widen_when_groups_move_together(study):
    rng = np.random.default_rng(0)
    per_group = np.repeat(rng.uniform(0, 0.2, 10), 20)[None, :]
    apart = [(str(i),) for i in range(200)]
    together = [(str(i // 20),) for i in range(200)]
    narrow, wide = (interval(per_group, groups, np.mean, study) for groups in (apart, together))
    assert narrow[0] == wide[0]
    assert wide[2] - wide[1] > 2 * (narrow[2] - narrow[1])


def test_gates_judge():
    assert judge(0.1, 0.09, None, 0.5) is True
    assert judge(0.1, 0.09, 0.2, 0.5) is False
    assert judge(None, 1.0, None, 1.0) is None


def test_thinning_keeps_a_small_table_whole():
    assert len(thinned(np.arange(10))) == 10
    assert len(thinned(np.arange(10_000))) <= compare.MOST_ROWS_TO_FIT


def test_conformance_is_exact_and_can_fail(monkeypatch):
    machine = load_accelerator("systolic_32x32")
    monkeypatch.setattr(conformance, "GEMMS", 5)
    monkeypatch.setattr(conformance, "CONVOLUTIONS", 3)
    assert all(found.cases == found.equal for found in conformance.agreements(machine, 1))
    exact = conformance.scale_sim_cycles
    monkeypatch.setattr(conformance, "scale_sim_cycles", lambda *shape: exact(*shape) + 1)
    assert all(found.equal == 0 for found in conformance.agreements(machine, 1))


def test_meprop_speedups_have_the_published_shape():
    machine = load_accelerator("nvidia_gtx_1080")
    for found in (beside(TABLE_7_MS, one_layer(machine)), beside(TABLE_8_MS, whole_backward(machine))):
        assert np.all(np.diff(found.simulated) < 0)
        assert found.scaled_worst_factor < 2.0
        assert found.worst_factor < 2.5


def test_eie_is_within_a_third_of_its_published_energy():
    found = modules()
    published = sum(module.published_pj for module in found)
    assert published == pytest.approx(9.157 / 0.8, rel=0.001)  # the paper's own total
    nominal = sum(module.simulated_pj.nominal for module in found)
    assert abs(nominal / published - 1) < 0.33


def test_without_data_one_line_says_what_is_needed(monkeypatch, tmp_path):
    monkeypatch.delenv("HWSIM_DATA", raising=False)
    with pytest.raises(SpecError, match="set HWSIM_DATA"):
        run_study(FILE)
    with pytest.raises(SpecError, match="no folder gpu_measured"):
        data_folder(tmp_path)


@needs_data
@pytest.mark.data
@pytest.mark.parametrize("number", range(4))
def test_shipped_machines_keep_the_gates_on_all_rows(study, number):
    """The machine files as they are; only each table's overhead, which is its method's, is scanned coarsely."""
    fit = study.fits[number]
    fitting = Fitting(fit, load_accelerator(fit.machine), data_folder())
    for table in fit.tables:
        if table.gates.mean is not None:
            assert best_error(fitting, table) <= table.gates.mean, table.name


def best_error(fitting: Fitting, table: Table) -> float:
    """Mean error of a table's rows (thinned to some 600) with the overhead that suits them best."""
    chosen = thinned(np.arange(len(fitting.rows[table.name])))
    values = {key: 0.0 if key.startswith("overhead") else fitting.stated(key) for key in fitting.ranges}
    errors = fitting.errors(values, table, chosen)
    measured = fitting.rows[table.name].time_us[chosen]
    span = np.linspace(table.overhead_us.low, table.overhead_us.high, 27)
    return min(float(np.abs(errors + overhead / measured).mean()) for overhead in span)


@needs_data
@pytest.mark.data
def test_a_wrong_machine_misses_the_gates(study):
    """The agreement above can fail: half the clock is not within the gate, whatever the overhead."""
    fit = study.fits[0]
    machine = with_setting(load_accelerator(fit.machine), "clock.sustained_clock_ghz", 0.64)
    table = fit.tables[0]
    assert best_error(Fitting(fit, machine, data_folder()), table) > 2 * table.gates.mean


@needs_data
@pytest.mark.data
def test_fits_stay_inside_their_ranges(study, monkeypatch):
    monkeypatch.setattr(compare, "MOST_ROWS_TO_FIT", 60)
    fit = study.fits[3]
    quick = study.model_copy(update={"splits": 1, "bootstrap": 100})
    fitted = compare.run_fit(fit, load_accelerator(fit.machine), data_folder(), quick, lambda _: None)
    for key, values in fitted.found.items():
        plausible = fitted.ranges[key]
        assert all(plausible.low <= value <= plausible.high for value in values)
    judged = fitted.tables[0]
    assert judged.mean[1] <= judged.mean[0] <= judged.mean[2] < 0.15
    assert judged.held_out.shape == (1, len(judged.rows))


@needs_data
@pytest.mark.data
def test_rows_say_what_was_asked_for(study):
    table = study.fits[0].tables[0]
    rows = read_rows(table, data_folder())
    assert len(rows) == 159
    with pytest.raises(SpecError, match="no row"):
        read_rows(table.model_copy(update={"where": {"device": "Z80"}}), data_folder())
