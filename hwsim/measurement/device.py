"""Which device this is, and what it says about itself: clocks, power, energy. Reads only; no setting is touched."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from hwsim.measurement.record import DeviceState


class Sensors(Protocol):
    """What a device tells about itself while it works."""

    source: str

    def state(self) -> DeviceState:
        """Return clocks, power and temperature now."""
        ...

    def energy_mj(self) -> float | None:
        """Return the energy counter in millijoules, or None if there is none."""
        ...


class NoSensors:
    """A device that tells nothing."""

    source = "none"

    def state(self) -> DeviceState:
        """Return an empty state."""
        return DeviceState()

    def energy_mj(self) -> float | None:
        """Return None."""
        return None


class NvmlSensors:
    """NVIDIA's management library, through the package nvidia-ml-py."""

    source = "nvml"

    def __init__(self, index: int = 0) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)

    def state(self) -> DeviceState:
        """Return clocks (MHz), power (W) and temperature (C); an unsupported query gives None."""
        nvml, handle = self._nvml, self._handle
        power = self._try(nvml.nvmlDeviceGetPowerUsage, handle)
        return DeviceState(
            sm_clock_mhz=self._try(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            memory_clock_mhz=self._try(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
            power_w=None if power is None else power / 1000,
            temperature_c=self._try(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
        )

    def energy_mj(self) -> float | None:
        """Return NVML's energy counter (millijoules since the driver was loaded)."""
        return self._try(self._nvml.nvmlDeviceGetTotalEnergyConsumption, self._handle)

    def driver(self) -> str:
        """Return the driver's version."""
        text = self._nvml.nvmlSystemGetDriverVersion()
        return text.decode() if isinstance(text, bytes) else str(text)

    def _try(self, query: Any, *arguments: Any) -> Any:
        try:
            return query(*arguments)
        except self._nvml.NVMLError:
            return None


class SmiSensors:
    """The same through the nvidia-smi program; it has no energy counter, so energy is left out."""

    source = "nvidia-smi"

    def state(self) -> DeviceState:
        """Return what `nvidia-smi --query-gpu` prints; a field it cannot tell is None."""
        line = _smi("clocks.sm,clocks.mem,power.draw,temperature.gpu")
        values = [_number(text) for text in line.split(",")] if line else [None] * 4
        values += [None] * (4 - len(values))
        sm, memory, power, temperature = values[:4]
        return DeviceState(
            None if sm is None else int(sm),
            None if memory is None else int(memory),
            power,
            None if temperature is None else int(temperature),
        )

    def energy_mj(self) -> float | None:
        """Return None: nvidia-smi prints no energy counter."""
        return None

    def driver(self) -> str:
        """Return the driver's version."""
        return _smi("driver_version")


def open_sensors(kind: str) -> Sensors:
    """Return the best source of readings for a device kind ("cuda" or "cpu")."""
    if kind != "cuda":
        return NoSensors()
    try:
        return NvmlSensors()
    except Exception:  # no package, no library, no permission: all mean "ask nvidia-smi instead"
        return SmiSensors() if shutil.which("nvidia-smi") else NoSensors()


def describe(kind: str, sensors: Sensors) -> dict[str, Any]:
    """Return what identifies the device and the software, without host name or paths."""
    import numpy
    import torch

    facts: dict[str, Any] = {
        "kind": kind,
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": numpy.__version__,
            "triton": triton_version(),
            "cuda": torch.version.cuda,
        },
        "sensors": sensors.source,
        "platform": f"{platform.system()} {platform.machine()}",
    }
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": int(getattr(properties, "L2_cache_size", 0)),
            "driver": sensors.driver() if hasattr(sensors, "driver") else _smi("driver_version"),
        }
    else:
        facts |= {"name": _processor_name(), "threads": torch.get_num_threads()}
    return facts


def triton_version() -> str | None:
    """Return triton's version, or None if it cannot be imported."""
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


def code_commit() -> str:
    """Return the commit of this checkout, with "+changes" for edited tracked files, or "unknown" outside git."""
    here = Path(__file__).resolve().parent
    try:
        commit = _run(["git", "-C", str(here), "rev-parse", "HEAD"])
        changed = _run(["git", "-C", str(here), "status", "--porcelain", "--untracked-files=no", "--", "*.py"])
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit + ("+changes" if changed else "")


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _smi(query: str) -> str:
    try:
        return _run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", "-i", "0"])
    except (OSError, subprocess.SubprocessError):
        return ""


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _processor_name() -> str:
    if sys.platform.startswith("linux"):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
