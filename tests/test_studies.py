"""Every study of reports/ works from its file to its page: its quick form is run as CI runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

import hwsim
from hwsim.catalog import load_experiment, reports, schema_kind
from hwsim.data.dataset import load
from hwsim.errors import SpecError
from hwsim.expected import Expected
from hwsim.report.page import write_page
from hwsim.results import Results

STUDIES = {name: path for name, path in reports().items() if schema_kind(path) == "experiment"}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_fits_its_expectations(name: str) -> None:
    experiment = load_experiment(STUDIES[name])
    assert experiment.name == name
    whole = [point.name for point in experiment.points()]
    quick = [point.name for point in experiment.quick_form().points()]
    assert quick and set(quick) <= set(whole)
    expected = Expected.beside(STUDIES[name].parent)
    if expected is not None:
        expected.check_names(whole, experiment.accelerators)


@pytest.mark.parametrize("name", STUDIES)
def test_what_stands_in_a_study_is_no_quick_run_and_of_these_configurations(name: str) -> None:
    path = STUDIES[name].parent / "results.json"
    if not path.is_file():
        pytest.skip(f"{name} was not run yet")
    results = Results.read(path)
    assert not results.quick
    assert [c.name for c in results.configurations] == [p.name for p in load_experiment(STUDIES[name]).points()]
    assert results.gaps() == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_the_quick_form_of_a_study_runs_to_its_page(name: str, tmp_path: Path) -> None:
    experiment = load_experiment(STUDIES[name])
    try:
        load(experiment.data)
    except SpecError as error:
        pytest.skip(f"no data: {error}")
    results = hwsim.run(experiment, tmp_path, quick=True)
    assert results.quick and results.gaps() == ()
    points = experiment.quick_form().points()
    assert len(results.trials) == sum(len(point.seeds) for point in points)
    assert all(t.training.outcome == "finished" for t in results.trials if t.configuration == results.baseline)
    assert len({record.accelerator for record in results.simulations}) == len(experiment.accelerators)
    if Expected.beside(STUDIES[name].parent) is not None:
        compared = next(section for section in results.sections if section.title == "Ours beside the published numbers")
        assert compared.verdict in ("quick", "not comparable")
    assert "A quick run" in write_page(results, tmp_path).read_text(encoding="utf-8")
