"""Measure everything in one command: in slices, resumable, the most valuable parts first.

    python -m hwsim.measurement.suite --suite all --minutes 9 --resume --out reports/gpu_h200

needs the standard library, numpy and torch (triton for our own kernels, nvcc for the tensor cores); what is missing is
said in the first 20 seconds and left out. The work is done by a second process (`worker`); this one keeps the file and
the time, so no case can take the run down: one that crashes, hangs or gives a wrong result becomes a `Failure`.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hwsim.errors import HwsimError, SpecError, UnsupportedError
from hwsim.measurement import device as machine
from hwsim.measurement.cases import Case, cpu_cases, cuda_cases, families
from hwsim.measurement.record import FILE_NAME, Failure, MeasurementFile, measurement_from_json

HELLO_S = 90.0  # importing torch and making a device context may be slow on a cold machine
STALL_S = 120.0  # longest silence of a worker that is given a case
SAVE_S = 5.0
HEAD = 60  # cases before the tensor cores get their turn
TENSOR_CORE_S = 150.0  # what the tensor cores may take of a slice

Tell = Callable[[str], None]


@dataclass
class Suite:
    """One run: the file it adds to, the clock it obeys, the worker it talks to."""

    out: Path
    deadline: float  # time.monotonic()
    commit: str
    tell: Tell = print
    worker: Sequence[str] = (sys.executable, "-m", "hwsim.measurement.worker")
    stall_s: float = STALL_S
    grace_s: float = 10.0  # how long a case may outlast the deadline
    file: MeasurementFile = field(default_factory=MeasurementFile)
    checks: list[dict[str, Any]] = field(default_factory=list)
    refusal: str = ""  # why no worker could start
    _saved: float = 0.0
    _told: float = 0.0

    @property
    def path(self) -> Path:
        """The measurements file."""
        return self.out / FILE_NAME

    @property
    def seconds_left(self) -> float:
        """Seconds until the run must have ended."""
        return self.deadline - time.monotonic()

    def todo(self, cases: Sequence[Case]) -> list[Case]:
        """The cases without a measurement and without a failure of this very commit."""
        failed = {entry.id for entry in self.file.failures.values() if entry.commit == self.commit}
        return [case for case in cases if case.id not in self.file.measurements and case.id not in failed]

    def save(self, every_s: float = 0.0) -> None:
        """Write the file, unless that was done less than `every_s` ago."""
        if time.monotonic() - self._saved >= every_s:
            self.file.write(self.path)
            self._saved = time.monotonic()

    def measure(self, select_cases: Callable[[str], list[Case]], device: str = "auto") -> None:
        """Run workers until nothing is left to do, the time is up, or two workers in a row die before their first
        case."""
        barren = 0
        while self.seconds_left > 0 and barren < 2:
            cases = None
            with Worker(self.worker, device) as worker:
                hello = worker.read(min(HELLO_S, max(1.0, self.seconds_left)))
                if hello is None or hello.get("event") != "hello":
                    barren += 1
                    self.refusal = f"the measuring process did not start: {worker.last_words()}"
                    self.tell(self.refusal)
                    continue
                self._greet(hello)
                cases = self.todo(self._possible(select_cases(hello["device"]["kind"])))
                if not cases:
                    return
                worker.order(
                    {"cases": [case.id for case in cases], "seconds": self.seconds_left - 3, "commit": self.commit}
                )
                finished, measured_any = self._follow(worker)
            self.save()
            if finished:
                return
            barren = 0 if measured_any else barren + 1

    def _greet(self, hello: dict[str, Any]) -> None:
        """Take the device's facts; refuse a file of another device; print the self-check once."""
        known, found = self.file.device.get("name"), hello["device"]["name"]
        if known is not None and known != found:
            raise SpecError(f"{self.path}: holds measurements of {known!r}, this is {found!r}; give another --out")
        self.file.device = hello["device"]
        if not self.checks:
            self.checks = hello["checks"]
            self.tell(f"device: {found} ({hello['device']['kind']}); readings: {hello['device']['sensors']}")
            for check in self.checks:
                self.tell(f"  {'ok     ' if check['ok'] else 'MISSING'} {check['name']}: {check['detail']}")
        self.save()

    def _possible(self, cases: list[Case]) -> list[Case]:
        """Leave out what the self-check says cannot run here."""
        missing = {check["name"].split()[0] for check in self.checks if not check["ok"]}
        possible = [
            case
            for case in cases
            if not ("triton" in missing and case.needs_triton)
            and not ("FP8" in missing and case.dtype.startswith("float8") and case.kernel == "cublas")
            and not ("emulation" in missing and case.family == "emulation")
        ]
        if len(possible) < len(cases):
            self.tell(f"left out for what is missing: {len(cases) - len(possible)} cases")
        return possible

    def _follow(self, worker: Worker) -> tuple[bool, bool]:
        """Take a worker's reports. Returns (it finished in good order, it measured something)."""
        current, measured = None, False
        while True:
            limit = min(self.stall_s, self.seconds_left + self.grace_s)
            message = worker.read(limit) if limit > 0 else None
            if message is None:
                if self.seconds_left <= 0:
                    return True, measured  # out of time within a case: it stays to be done
                if current is not None:
                    reason = worker.last_words() if worker.ended else f"no answer in {limit:.0f} s"
                    self._fail(current, reason)
                return False, measured or current is not None
            event = message["event"]
            if event == "done":
                return True, measured
            if event == "start":
                current = message["id"]
            elif event == "failure":
                self._fail(message["id"], message["reason"])
                current, measured = None, True
            elif event == "measurement":
                try:
                    entry = measurement_from_json(message["measurement"])
                except (HwsimError, ValueError, TypeError, KeyError) as error:
                    self._fail(str(current), f"refused: {error}")
                else:
                    self.file.add(entry)
                    if time.monotonic() - self._told > 3:
                        self._told = time.monotonic()
                        self.tell(
                            f"[{len(self.file.measurements):4d}, {self.seconds_left:4.0f} s left] {entry.id} "
                            f"{entry.timing.time_us:.1f} us"
                        )
                current, measured = None, True
            self.save(SAVE_S)

    def _fail(self, name: str, reason: str) -> None:
        self.file.fail(Failure(name, reason, machine.now(), self.commit))
        self.tell(f"no measurement of {name}: {reason}")


class Worker:
    """A measuring process and the pipe it reports through; killed, with all it started, when the block ends."""

    def __init__(self, command: Sequence[str], device: str) -> None:
        read_end, write_end = os.pipe()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self._process = subprocess.Popen(
            [*command, "--report", str(write_end), "--device", device],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=[write_end],
            start_new_session=True,
        )
        os.close(write_end)
        self._pipe = read_end
        self._buffer = b""
        self.ended = False
        self.done = False

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.wait(5.0 if self.ended or self.done else 0.0)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._pipe)
        if self._process.stdin:
            self._process.stdin.close()
        self._errors.close()

    def order(self, message: dict[str, Any]) -> None:
        """Send the one line of orders; a worker that died meanwhile shows when it is read."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass

    def read(self, timeout_s: float) -> dict[str, Any] | None:
        """The next message, or None if none came in time or the worker is gone (`ended`)."""
        end = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._pipe], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return None
            piece = os.read(self._pipe, 1 << 16)
            if not piece:
                self.ended = True
                return None
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        self.done = message.get("event") == "done"
        return message

    def last_words(self) -> str:
        """How the worker ended, and the last line it wrote to its error stream."""
        try:
            code = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            return "it hangs"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"the process ended with {code}" + (f": {lines[-1][:300]}" if lines else "")


def run(
    out: Path | str,
    suite: str = "all",
    minutes: float = 9.0,
    resume: bool = False,
    device: str = "auto",
    commit: str | None = None,
    tell: Tell = print,
) -> MeasurementFile:
    """Measure for at most `minutes` and leave the result in `out`/measurements.json, whatever happens on the way.

    suite: "all", "tensor_core", or families separated by commas (see `cases.families`). device: auto, cuda or cpu.

    Raises:
        UnsupportedError: no measuring process could start.
        SpecError: a file in the way (without `resume`), one of another device, or an unknown suite.
    """
    out = Path(out)
    known = ["tensor_core", *families([*cuda_cases(), *cpu_cases()])]
    wanted = known if suite == "all" else suite.split(",")
    if unknown := [name for name in wanted if name not in known]:
        raise SpecError(f"--suite: got {unknown[0]!r}, expected all or some of {', '.join(known)}")
    if not 0 < minutes <= 24 * 60:
        raise SpecError(f"--minutes: got {minutes}, expected a number in (0, 1440]")
    job = Suite(out, time.monotonic() + 60 * minutes, commit or machine.code_commit(), tell)
    if job.path.exists():
        if not resume:
            raise SpecError(f"{job.path}: exists; add to it with --resume, or give another --out")
        job.file = MeasurementFile.read(job.path)
    out.mkdir(parents=True, exist_ok=True)

    def cases(kind: str) -> list[Case]:
        return [case for case in (cuda_cases() if kind == "cuda" else cpu_cases()) if case.family in wanted]

    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        if "tensor_core" in wanted:
            if len(wanted) > 1:
                job.measure(lambda kind: cases(kind)[:HEAD] if kind == "cuda" else cases(kind), device)
            _tensor_cores(job, device)
        job.measure(cases, device)
    except KeyboardInterrupt:
        tell("stopped; what was measured is kept")
    finally:
        signal.signal(signal.SIGTERM, previous)
        kind = job.file.device.get("kind")
        if kind:
            job.file.remaining = len([case for case in cases(kind) if case.id not in job.file.measurements])
        if kind or job.path.exists():
            job.save()
    if not kind and not job.file.tensor_core and job.refusal:
        raise UnsupportedError(f"nothing was measured: {job.refusal}")
    _summary(job, cases(kind) if kind else [])
    return job.file


def _tensor_cores(job: Suite, device: str) -> None:
    """Let the live tensor cores answer, in a process of their own; only on a CUDA device with nvcc."""
    import shutil

    kind = job.file.device.get("kind", "cuda" if shutil.which("nvidia-smi") else "cpu")
    if device == "cpu" or kind != "cuda":
        job.tell("tensor cores: left out, they need a CUDA device")
        return
    if job.seconds_left < 20:
        return
    limit = min(TENSOR_CORE_S, job.seconds_left - 5)
    command = [
        sys.executable,
        "-m",
        "hwsim.measurement.tensor_core",
        "--out",
        str(job.out),
        "--seconds",
        str(limit),
        "--resume",
        "--commit",
        job.commit,
    ]
    job.save()
    try:
        done = subprocess.run(command, timeout=limit + 15, capture_output=True, text=True, check=False)
        lines = (done.stdout + done.stderr).strip().splitlines()
    except subprocess.TimeoutExpired:
        lines = [f"tensor cores: stopped after {limit:.0f} s"]
    for line in lines[-25:]:
        job.tell(line)
    if (findings := job.out / "tensor_core.json").exists():
        cases = json.loads(findings.read_text(encoding="utf-8"))["cases"]
        # The answers to single questions stay in their own file.
        brief = [{key: value for key, value in case.items() if key not in ("questions", "examples")} for case in cases]
        job.file.tensor_core = {case["id"]: case for case in brief}
    job.save()


def _summary(job: Suite, cases: list[Case]) -> None:
    """Print what was measured, what failed, and what is still missing, by family."""
    total = Counter(case.family for case in cases)
    have = Counter(case.family for case in cases if case.id in job.file.measurements)
    failed = Counter(case.family for case in cases if case.id in job.file.failures)
    job.tell(f"{'family':<16}{'measured':>9}{'failed':>8}{'missing':>9}")
    for family in total:
        missing = total[family] - have[family] - failed[family]
        job.tell(f"{family:<16}{have[family]:>9}{failed[family]:>8}{missing:>9}")
    if job.file.tensor_core:
        right = sum(entry.get("mismatches") == 0 for entry in job.file.tensor_core.values())
        job.tell(f"tensor cores: {right} of {len(job.file.tensor_core)} cases without a mismatch")
    if sum(total.values()) > sum(have.values()) + sum(failed.values()):
        job.tell("run the same command again, with --resume, for the rest")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns 0 when a file was written, 1 for a refused request, 3 where nothing can be measured."""
    parser = argparse.ArgumentParser(prog="python -m hwsim.measurement.suite", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--suite", default="all", help="all, tensor_core, or families separated by commas (default all)"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after so many minutes (default 9)")
    parser.add_argument("--out", default="runs/measure", help="folder of measurements.json (default runs/measure)")
    parser.add_argument("--resume", action="store_true", help="add to the file that is there")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto")
    parser.add_argument("--commit", help="commit to write into the records, where there is no git")
    options = parser.parse_args(arguments)
    try:
        run(options.out, options.suite, options.minutes, options.resume, options.device, options.commit, _print)
    except HwsimError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _print(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
