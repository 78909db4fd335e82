"""What a measurement is, and the file that keeps them: plain data, strict JSON, standard library only.

A `Measurement` exists only with a passed `Check`: building one from a kernel whose result was not compared, or was
wrong, raises `MeasurementError`. The file is replaced in one step, so a run that is killed leaves the last whole state.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hwsim.errors import HwsimError, SpecError

SCHEMA = "measurements/1"
FILE_NAME = "measurements.json"


class MeasurementError(HwsimError):
    """A time that must not become a measurement: unchecked, wrong, or not a positive finite number."""


@dataclass(frozen=True, slots=True)
class Check:
    """The comparison that came before the stopwatch."""

    against: str  # what it was compared with, in words
    error: float  # ||result - reference|| / ||reference|| over the compared elements; 0 for a bit-for-bit check
    tolerance: float
    compared: int  # number of elements compared

    @property
    def passed(self) -> bool:
        """True if something was compared and the error is a number within the tolerance (NaN never passes)."""
        return self.compared > 0 and self.error <= self.tolerance


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of one call in microseconds, over `samples` calls."""

    time_us: float  # median, caches flushed before every call
    low_us: float  # 10 % quantile
    high_us: float  # 90 % quantile
    samples: int
    includes: str  # what the time contains, in words
    warm_us: float | None = None  # mean of calls repeated inside one device graph, caches as they fall
    host_us: float | None = None  # time the host needs to launch one call, waiting for nothing


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy of one call, from the device's counter over a loop of `seconds`."""

    energy_uj: float  # counter difference / calls: everything the board drew, idle power included
    power_w: float  # mean over the loop
    idle_w: float  # mean of the device at rest, measured in the same run
    calls: int
    seconds: float


@dataclass(frozen=True, slots=True)
class DeviceState:
    """Clocks, power and temperature read just after the timed calls; None where the device does not tell."""

    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    power_w: float | None = None
    temperature_c: int | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """One kernel on one device: how long, how much data and arithmetic, and the check that it computed the right
    thing."""

    id: str  # unique in a file; see `cases.Case.id`
    family: str  # launch, memory, dense_gemm, topk_backward, optimizer, training_step, emulation
    kernel: str  # which implementation: cublas, triton, torch, ...
    operation: str  # output, grad_input, grad_weight, select_batch, gather, copy, ...
    dtype: str  # operand format by hwsim's name
    shape: Mapping[str, int]  # the axes of this family: m n k, kept, batch, layers ...
    group: str  # where the shape comes from: mlp table7 resnet llm sample edge ... ; held-out splits go by group
    flops: int  # useful operations of one call (2 per multiply-accumulate)
    bytes: int  # least device-memory traffic of one call: each input read once, each output written once
    launches: int  # kernels that one call launches; 0 if not known
    check: Check
    timing: Timing
    date: str  # ISO 8601, UTC
    commit: str  # of hwsim, or "unknown"
    state: DeviceState = field(default_factory=DeviceState)
    energy: Energy | None = None

    def __post_init__(self) -> None:
        if not self.check.passed:
            raise MeasurementError(
                f"{self.id}: refused, the result is wrong or was not compared: error {self.check.error:.3g} over "
                f"{self.check.compared} elements, allowed {self.check.tolerance:.3g} against {self.check.against}"
            )
        for name in ("time_us", "low_us", "high_us"):
            value = getattr(self.timing, name)
            if not (math.isfinite(value) and value > 0):
                raise MeasurementError(f"{self.id}: refused, {name} is {value}, expected a positive number")

    @property
    def tflops(self) -> float:
        """Useful operations per second, in 10^12."""
        return self.flops / self.timing.time_us / 1e6

    @property
    def gb_per_s(self) -> float:
        """Least traffic over time, in 10^9 bytes per second."""
        return self.bytes / self.timing.time_us / 1e3


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that gave no measurement, and why."""

    id: str
    reason: str
    date: str
    commit: str


@dataclass
class MeasurementFile:
    """All that is known of one device: measurements, failures, tensor-core findings, and what identifies the device."""

    device: dict[str, Any] = field(default_factory=dict)  # name, driver, versions ...: `device.describe`
    measurements: dict[str, Measurement] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    tensor_core: dict[str, dict[str, Any]] = field(default_factory=dict)  # one entry a case: `tensor_core.Finding`
    remaining: int = 0  # cases of the suite that still have neither measurement nor failure

    def add(self, measurement: Measurement) -> None:
        """Keep `measurement`; it replaces an older one or a failure of the same id."""
        self.measurements[measurement.id] = measurement
        self.failures.pop(measurement.id, None)

    def fail(self, failure: Failure) -> None:
        """Keep `failure`, unless a measurement of the same id exists."""
        if failure.id not in self.measurements:
            self.failures[failure.id] = failure

    def to_json(self) -> str:
        """Return the file's text: strict JSON, one measurement a line, so that differences read well."""
        head = {"schema": SCHEMA, "device": self.device, "remaining": self.remaining}
        lists = {
            "measurements": [asdict(entry) for entry in self.measurements.values()],
            "failures": [asdict(entry) for entry in self.failures.values()],
            "tensor_core": list(self.tensor_core.values()),
        }
        body = [json.dumps(head, allow_nan=False)[1:-1]]
        for name, entries in lists.items():
            rows = ",\n".join(json.dumps(entry, allow_nan=False) for entry in entries)
            body.append(f'"{name}": [\n{rows}\n]' if rows else f'"{name}": []')
        return "{" + ",\n".join(body) + "}\n"

    def write(self, path: Path) -> None:
        """Replace the file at `path` in one step."""
        write_atomically(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> MeasurementFile:
        """Read a file; raises SpecError for one that is not of this schema or carries an entry that must not be
        there."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        except (OSError, ValueError) as error:
            raise SpecError(f"{path}: not a readable measurements file: {error}") from None
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise SpecError.at(str(path), None, "schema", f"got {found!r}, expected {SCHEMA!r}")
        try:
            measurements = [_measurement(entry) for entry in data["measurements"]]
            failures = [Failure(**entry) for entry in data["failures"]]
            tensor_core = {str(entry["id"]): dict(entry) for entry in data["tensor_core"]}
            return cls(
                device=dict(data["device"]),
                measurements={entry.id: entry for entry in measurements},
                failures={entry.id: entry for entry in failures},
                tensor_core=tensor_core,
                remaining=int(data["remaining"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SpecError(f"{path}: a measurements file with a missing or unknown field: {error!r}") from None
        except MeasurementError as error:
            raise SpecError(f"{path}: {error}") from None


def measurement_to_json(measurement: Measurement) -> dict[str, Any]:
    """Return plain dictionaries and numbers."""
    return asdict(measurement)


def measurement_from_json(entry: Mapping[str, Any]) -> Measurement:
    """Rebuild a measurement, refusing unknown keys and a check that did not pass."""
    return _measurement(entry)


def _measurement(entry: Mapping[str, Any]) -> Measurement:
    known = {f.name for f in fields(Measurement)}
    if unknown := set(entry) - known:
        raise ValueError(f"unknown keys {sorted(unknown)}")
    parts = dict(entry)
    parts["check"] = Check(**entry["check"])
    parts["timing"] = Timing(**entry["timing"])
    parts["state"] = DeviceState(**entry.get("state", {}))
    parts["energy"] = Energy(**entry["energy"]) if entry.get("energy") else None
    return Measurement(**parts)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` beside `path`, flush it to the disk, and rename it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def quantile(values: Iterable[float], share: float) -> float:
    """Linear-interpolated quantile of `values`, `share` in [0, 1]; raises ValueError for no values."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("quantile of no values")
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not strict JSON")
