"""The H200 study: its file is sound, and its page says what is (not) known."""

from pathlib import Path

import pytest

from hwsim.measurement.record import MeasurementFile
from hwsim.validation.measured import run_measured

STUDY = Path(__file__).parents[2] / "reports" / "gpu_h200"


def test_the_page_says_what_is_known():
    results = run_measured(STUDY / "experiment.yaml")
    recorded = (STUDY / "measurements.json").exists()
    assert (results.answer == "Not measured yet.") == (not recorded)
    assert ("**There are no measurements here yet.**" in (STUDY / "README.md").read_text()) == (not recorded)


def test_recorded_measurements_are_of_this_device():
    path = STUDY / "measurements.json"
    if not path.exists():
        pytest.skip("no H200 was measured yet: reports/gpu_h200/measurements.json is missing")
    file = MeasurementFile.read(path)
    assert "H200" in file.device["name"] and file.measurements
