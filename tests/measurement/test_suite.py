"""The supervising process: no case can take the run down, and what was measured is never lost."""

import functools
import json
import sys
import time
from pathlib import Path

import pytest

from hwsim.errors import SpecError
from hwsim.measurement import suite as suite_module
from hwsim.measurement.cases import make
from hwsim.measurement.record import FILE_NAME, MeasurementFile
from hwsim.measurement.suite import Suite, main, run

FAKE = Path(__file__).with_name("fake_worker.py")
CASES = [make("launch", name, "torch", "uint8", "launch", n=1) for name in ("good1", "good2", "bad", "good3")]


def job(tmp_path, mode, seconds=30.0, stall_s=20.0, said=None):
    return Suite(
        tmp_path, time.monotonic() + seconds, "c", (said if said is not None else []).append,
        worker=(sys.executable, str(FAKE), mode), stall_s=stall_s, grace_s=0.5,
    )  # fmt: skip


def names(file):
    return [name.split("/")[1] for name in file.measurements]


def test_a_failing_case_is_recorded_and_the_rest_is_measured(tmp_path):
    suite = job(tmp_path, "plain")
    suite.measure(lambda kind: CASES)
    file = MeasurementFile.read(suite.path)
    assert names(file) == ["good1", "good2", "good3"]
    assert [failure.reason for failure in file.failures.values()] == ["too large"]
    assert file.device["name"] == "a chip"


@pytest.mark.parametrize(("mode", "says"), [("crash", "ended with 11"), ("hang", "no answer in 1 s")])
def test_a_case_that_kills_or_stalls_the_worker_costs_only_itself(tmp_path, mode, says):
    suite = job(tmp_path, mode, stall_s=1.0 if mode == "hang" else 20.0)
    suite.measure(lambda kind: CASES)
    assert names(suite.file) == ["good1", "good2", "good3"]
    (failure,) = suite.file.failures.values()
    assert failure.id == CASES[2].id
    assert says in failure.reason


def test_a_record_whose_check_did_not_pass_becomes_a_failure(tmp_path):
    suite = job(tmp_path, "wrong_check")
    suite.measure(lambda kind: CASES[:1])
    assert not suite.file.measurements
    assert "refused" in suite.file.failures[CASES[0].id].reason


def test_the_time_limit_is_kept_and_the_unfinished_case_stays_to_be_done(tmp_path):
    suite = job(tmp_path, "slow", seconds=1.5)
    start = time.monotonic()
    suite.measure(lambda kind: [CASES[0], CASES[1], CASES[3]])
    assert time.monotonic() - start < 20
    assert names(suite.file) == ["good1", "good2"]
    assert not suite.file.failures


def test_a_worker_that_never_starts_is_given_up_with_its_last_words(tmp_path):
    said = []
    suite = job(tmp_path, "dead", said=said)
    suite.measure(lambda kind: CASES)
    assert len(said) == 2 and "no device here" in said[0]


def test_a_second_run_measures_only_what_is_missing(tmp_path):
    first = job(tmp_path, "plain")
    first.measure(lambda kind: CASES[:2])
    second = job(tmp_path, "plain")
    second.file = MeasurementFile.read(second.path)
    assert [case.operation for case in second.todo(CASES)] == ["bad", "good3"]
    second.measure(lambda kind: CASES)
    # a failure is not tried again by the same commit, but is by another
    assert second.todo(CASES) == []
    second.commit = "newer"
    assert [case.operation for case in second.todo(CASES)] == ["bad"]


def test_a_file_of_another_device_is_refused(tmp_path):
    first = job(tmp_path, "plain")
    first.measure(lambda kind: CASES[:1])
    second = job(tmp_path, "other_device")
    second.file = MeasurementFile.read(second.path)
    with pytest.raises(SpecError, match="another chip"):
        second.measure(lambda kind: CASES)


def test_what_the_self_check_misses_is_said_and_left_out(tmp_path):
    said = []
    suite = job(tmp_path, "plain", said=said)
    suite.measure(lambda kind: [*CASES[:1], make("dense_gemm", "output", "triton", "bfloat16", "mlp", m=8, n=8, k=8)])
    assert names(suite.file) == ["good1"]
    assert any("MISSING triton" in line for line in said)
    assert any("left out" in line and "1 cases" in line for line in said)


def test_requests_that_mean_nothing_are_refused_in_one_line(tmp_path, capsys):
    assert main(["--suite", "everything", "--out", str(tmp_path)]) == 1
    assert main(["--minutes", "0", "--out", str(tmp_path)]) == 1
    (tmp_path / FILE_NAME).write_text(MeasurementFile().to_json())
    assert main(["--suite", "launch", "--out", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3
    assert "expected all or some of" in lines[0] and "--minutes" in lines[1] and "--resume" in lines[2]


def test_a_device_that_cannot_be_used_is_said_in_one_line(tmp_path, capsys, monkeypatch):
    dead = functools.partial(Suite, worker=(sys.executable, str(FAKE), "dead"))
    monkeypatch.setattr(suite_module, "Suite", dead)
    assert main(["--suite", "launch", "--device", "cuda", "--out", str(tmp_path)]) == 3
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("nothing was measured") and "no device here" in error[0]
    assert not (tmp_path / FILE_NAME).exists()


def test_the_whole_command_on_this_processor(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(suite_module, "cpu_cases", lambda: CASES_ON_CPU)
    said = []
    file = run(tmp_path, "launch", minutes=1, device="cpu", commit="c", tell=said.append)
    (measured,) = file.measurements.values()
    assert measured.timing.time_us > 0 and measured.commit == "c" and measured.timing.samples >= 7
    assert file.remaining == 0
    assert json.loads((tmp_path / FILE_NAME).read_text())["device"]["kind"] == "cpu"
    assert any("launch" in line and line.split()[1:] == ["1", "0", "0"] for line in said)


CASES_ON_CPU = [make("launch", "empty", "torch", "uint8", "launch", n=1)]
