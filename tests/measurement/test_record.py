"""The measurements file: nothing unchecked gets in, it is replaced in one step, and it reads back as it was."""

import json
import math
from dataclasses import replace

import pytest

from hwsim.errors import SpecError
from hwsim.measurement.record import (
    SCHEMA,
    Check,
    DeviceState,
    Energy,
    Failure,
    Measurement,
    MeasurementError,
    MeasurementFile,
    Timing,
    quantile,
    write_atomically,
)

RIGHT = Check("a reference", 1e-6, 1e-5, 10)


def measurement(name="dense_gemm/output/cublas/bfloat16/m8_n8_k8", check=RIGHT, time_us=5.0, **changes):
    fields = {
        "id": name, "family": "dense_gemm", "kernel": "cublas", "operation": "output", "dtype": "bfloat16",
        "shape": {"m": 8, "n": 8, "k": 8}, "group": "mlp", "flops": 1024, "bytes": 384, "launches": 1, "check": check,
        "timing": Timing(time_us, time_us * 0.9, time_us * 1.1, 20, "events", 4.0, 2.0),
        "date": "2026-11-20T00:00:00Z", "commit": "abc",
        "state": DeviceState(1980, 3201, 400.0, 40), "energy": Energy(2.0, 400.0, 75.0, 100, 2.0),
    }  # fmt: skip
    return Measurement(**(fields | changes))


@pytest.mark.parametrize(
    "check",
    [
        Check("a reference", 2e-5, 1e-5, 10),  # wrong
        Check("a reference", math.nan, 1e-5, 10),  # not finite
        Check("a reference", 0.0, 1e-5, 0),  # nothing was compared
    ],
)
def test_a_time_without_a_passed_check_is_refused(check):
    with pytest.raises(MeasurementError, match="refused"):
        measurement(check=check)


@pytest.mark.parametrize("time_us", [0.0, -1.0, math.nan, math.inf])
def test_a_time_that_is_no_positive_number_is_refused(time_us):
    with pytest.raises(MeasurementError, match="positive"):
        measurement(time_us=time_us)


def test_rates_follow_from_work_and_time():
    one = measurement(time_us=2.0)
    assert one.tflops == pytest.approx(1024 / 2e-6 / 1e12)
    assert one.gb_per_s == pytest.approx(384 / 2e-6 / 1e9)


def test_a_file_reads_back_as_it_was(tmp_path):
    file = MeasurementFile(device={"name": "a chip"}, remaining=3)
    file.add(measurement())
    file.add(measurement("another", energy=None, state=DeviceState()))
    file.fail(Failure("third", "out of memory", "2026-11-20T00:00:00Z", "abc"))
    file.tensor_core["x"] = {"id": "x", "mismatches": 0}
    path = tmp_path / "measurements.json"
    file.write(path)
    assert MeasurementFile.read(path) == file
    assert json.loads(path.read_text())["schema"] == SCHEMA
    assert [p.name for p in tmp_path.iterdir()] == ["measurements.json"]  # no temporary file stays


def test_a_measurement_replaces_its_failure_and_not_the_other_way_round():
    file = MeasurementFile()
    failure = Failure(measurement().id, "reason", "2026-11-20T00:00:00Z", "abc")
    file.fail(failure)
    file.add(measurement())
    assert not file.failures
    file.fail(failure)
    assert not file.failures and file.measurements


def test_a_file_with_an_unchecked_entry_is_refused(tmp_path):
    file = MeasurementFile(device={"name": "a chip"})
    file.add(measurement())
    data = json.loads(file.to_json())
    data["measurements"][0]["check"]["error"] = 1.0
    path = tmp_path / "measurements.json"
    path.write_text(json.dumps(data))
    with pytest.raises(SpecError, match="refused"):
        MeasurementFile.read(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not a readable"),
        ('{"schema": "results/1"}', "expected 'measurements/1'"),
        ("[1]", "expected 'measurements/1'"),
        ('{"schema": "measurements/1"}', "missing or unknown"),
        ('{"schema": "measurements/1", "remaining": NaN}', "strict JSON"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path, text, says):
    path = tmp_path / "measurements.json"
    path.write_text(text)
    with pytest.raises(SpecError, match=says) as caught:
        MeasurementFile.read(path)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_is_refused(tmp_path):
    file = MeasurementFile(device={})
    file.add(measurement())
    data = json.loads(file.to_json())
    data["measurements"][0]["extra"] = 1
    path = tmp_path / "measurements.json"
    path.write_text(json.dumps(data))
    with pytest.raises(SpecError, match="extra"):
        MeasurementFile.read(path)


def test_a_number_that_json_cannot_say_is_not_written():
    file = MeasurementFile()
    file.add(measurement(state=DeviceState(power_w=math.nan)))
    with pytest.raises(ValueError, match="Out of range"):
        file.to_json()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    path.write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_quantiles_interpolate():
    assert quantile([1, 2, 3, 4], 0.5) == 2.5
    assert quantile([5], 0.9) == 5
    assert quantile(range(11), 0.1) == 1
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_measurements_compare_by_value():
    assert measurement() == measurement()
    assert replace(measurement(), flops=1) != measurement()
