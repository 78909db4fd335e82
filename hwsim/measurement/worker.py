"""The process that touches the device: it checks itself, then prepares, checks and times one case after another.

It is started by `suite` and speaks to it in JSON lines over a pipe of its own (libraries may print what they like).
It keeps no file: a crash, a hang or a poisoned device context costs the case at hand and nothing else.

worker -> suite   {"event": "hello", "device": {...}, "checks": [...]}          once, within the first 20 seconds
suite -> worker   {"cases": [ids], "seconds": s, "commit": "..."}               one line on standard input
worker -> suite   {"event": "start", "id": ...} then {"event": "measurement", ...} or {"event": "failure", ...}
                  {"event": "done"}                                              no case left, or no time
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

from hwsim.measurement import device as machine
from hwsim.measurement.cases import Case, cpu_cases, cuda_cases
from hwsim.measurement.record import Measurement, MeasurementError, measurement_to_json
from hwsim.measurement.timer import (
    Clock,
    CpuClock,
    CudaClock,
    Effort,
    idle_power,
    measure,
    measure_energy,
    measure_wall,
)

Say = Callable[[dict[str, Any]], None]


def main(arguments: list[str] | None = None) -> int:
    """Speak the protocol above on the pipe whose number is given."""
    parser = argparse.ArgumentParser(description="the measuring process; started by hwsim.measurement.suite")
    parser.add_argument("--report", type=int, required=True, help="number of the file descriptor to report to")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
    options = parser.parse_args(arguments)
    with os.fdopen(options.report, "w", buffering=1, encoding="utf-8") as stream:

        def say(message: dict[str, Any]) -> None:
            stream.write(json.dumps(message) + "\n")
            stream.flush()

        return serve(say, sys.stdin.readline, options.device)


def serve(say: Say, read_line: Callable[[], str], wanted: str) -> int:
    """Say hello, take the orders, work through them."""
    import torch

    kind = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    sensors = machine.open_sensors(kind)
    idle_w = None
    if kind == "cuda":
        torch.zeros(1, device="cuda")  # the context exists from here on: rest means an idle context
        torch.cuda.synchronize()
        idle_w = idle_power(sensors)
    else:
        torch.set_num_threads(min(torch.get_num_threads(), 4))
    facts = machine.describe(kind, sensors) | {"idle_w": idle_w}
    say({"event": "hello", "device": facts, "checks": self_check(kind, idle_w)})
    orders = json.loads(read_line())
    clock: Clock = CudaClock() if kind == "cuda" else CpuClock()
    if kind == "cuda":
        warm_up(1.0)
    known = {case.id: case for case in (cuda_cases() if kind == "cuda" else cpu_cases())}
    end = time.monotonic() + float(orders["seconds"])
    for number, name in enumerate(orders["cases"]):
        if time.monotonic() > end:
            break
        say({"event": "start", "id": name})
        try:
            result = run_case(known[name], torch.device(kind), clock, sensors, idle_w, orders["commit"])
            say({"event": "measurement", "measurement": measurement_to_json(result)})
        except Exception as error:  # whatever a case throws concerns that case alone
            say({"event": "failure", "id": name, "reason": describe_error(error)})
            error.__traceback__ = None  # its frames hold the case's tensors
            gc.collect()
            if kind == "cuda" and not device_answers():
                return 3  # the context is lost: the suite starts a fresh process
        finally:
            if number % 25 == 24:  # a full collection takes about as long as a small case
                gc.collect()
            if kind == "cuda":
                release_memory()
    say({"event": "done"})
    return 0


def run_case(
    case: Case, device: Any, clock: Clock, sensors: machine.Sensors, idle_w: float | None, commit: str
) -> Measurement:
    """Prepare one case, check its result, and only then time it."""
    prepared = prepare(case, device)
    check = prepared.check()
    clock.wait()
    if not check.passed:
        raise MeasurementError(
            f"wrong result: error {check.error:.3g}, allowed {check.tolerance:.3g} against {check.against}"
        )
    effort = Effort()
    if prepared.wall:
        timing = measure_wall(clock, prepared.call, effort)
    else:
        timing = measure(clock, prepared.call, effort, prepared.graph)
    state, energy = sensors.state(), None
    if case.energy:
        energy, state = measure_energy(clock, sensors, prepared.call, idle_w)
    return Measurement(
        id=case.id,
        family=case.family,
        kernel=case.kernel,
        operation=case.operation,
        dtype=case.dtype,
        shape=dict(case.shape),
        group=case.group,
        flops=prepared.flops,
        bytes=prepared.bytes,
        launches=prepared.launches,
        check=check,
        timing=timing,
        date=machine.now(),
        commit=commit,
        state=state,
        energy=energy,
    )


def prepare(case: Case, device: Any) -> Any:
    """Return the `Prepared` of a case, by its family."""
    from hwsim.measurement import dense_gemm, emulation, memory_ops, topk_gemm, training_step

    return {
        "launch": memory_ops.prepare_launch,
        "memory": memory_ops.prepare,
        "optimizer": memory_ops.prepare_optimizer,
        "dense_gemm": dense_gemm.prepare,
        "convolution": dense_gemm.prepare_convolution,
        "topk_backward": topk_gemm.prepare,
        "training_step": training_step.prepare,
        "emulation": emulation.prepare,
    }[case.family](case, device)


def self_check(kind: str, idle_w: float | None) -> list[dict[str, Any]]:
    """Try each thing the suite relies on, small; return name, ok and detail of each."""
    checks = [_attempt("product of two matrices", lambda: _small_product(kind, triton=False))]
    if kind == "cuda":
        checks += [
            _attempt("triton", lambda: _small_product(kind, triton=True)),
            _attempt("FP8 product (torch._scaled_mm)", _small_fp8),
            _attempt(
                "nvcc (tensor cores bit for bit)", lambda: shutil.which("nvcc") or _missing("nvcc is not on the PATH")
            ),
            _attempt(
                "energy counter", lambda: f"idle {idle_w:.0f} W" if idle_w else _missing("no energy counter: no energy")
            ),
        ]
    checks.append(_attempt("emulation kernels (hwsim.kernels)", _import_kernels))
    return checks


def _attempt(name: str, action: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"name": name, "ok": True, "detail": str(action())}
    except Exception as error:  # a missing part is a finding here, not an error
        return {"name": name, "ok": False, "detail": describe_error(error)}


def _small_product(kind: str, triton: bool) -> str:
    import torch

    from hwsim.measurement.prepared import UnavailableError, check_product

    x = torch.arange(48 * 32, device=kind).reshape(48, 32).remainder(7).float()
    result = torch.full((48, 48), float("nan"), device=kind)
    if triton:
        from hwsim.measurement.triton_gemm import gemm

        gemm(x, x.t(), result)
    else:
        torch.mm(x, x.t(), out=result)
    if not check_product(result, x, x.t(), "float32").passed:
        raise UnavailableError("gives a wrong product")
    return "right"


def _small_fp8() -> str:
    import torch

    x = torch.ones((32, 32), device="cuda").to(torch.float8_e4m3fn)
    one = torch.ones((), device="cuda")
    result = torch._scaled_mm(x, x.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
    return "right" if float(result[3, 5]) == 32.0 else _missing("gives a wrong product")


def _import_kernels() -> str:
    import importlib
    import importlib.util

    from hwsim.kernels import backends

    for module in ("casts", "gemm"):
        importlib.import_module(f"hwsim.kernels.{module}")
    if importlib.util.find_spec("numba") is None:
        _missing("numba is not installed: tensor cores are compared with the slower numpy model")
    return ", ".join(backends.available())


def _missing(text: str) -> str:
    from hwsim.measurement.prepared import UnavailableError

    raise UnavailableError(text)


def warm_up(seconds: float) -> None:
    """Multiply until the clocks have risen."""
    import torch

    x = torch.randn((4096, 4096), device="cuda", dtype=torch.bfloat16)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(20):
            torch.mm(x, x)
        torch.cuda.synchronize()


def device_answers() -> bool:
    """True if the device still computes after an error."""
    import torch

    try:
        torch.cuda.synchronize()
        return float(torch.ones(2, device="cuda").sum()) == 2.0
    except RuntimeError:
        return False


def release_memory() -> None:
    """Give cached blocks back when they have grown large, so that big cases follow big cases."""
    import torch

    try:
        if torch.cuda.memory_reserved() > 24 << 30:
            torch.cuda.empty_cache()
    except RuntimeError:
        pass


def describe_error(error: BaseException) -> str:
    """One line: the kind of error and its first line, without paths."""
    text = str(error).strip().splitlines()
    first = next((line.strip() for line in text if line.strip()), "")
    return f"{type(error).__name__}: {first}"[:400]


if __name__ == "__main__":
    sys.exit(main())
