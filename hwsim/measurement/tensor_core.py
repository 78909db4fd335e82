"""The named MACs of `hwsim.arithmetic.mac` against the live chip, one instruction at a time, bit for bit.

    python -m hwsim.measurement.tensor_core --out reports/gpu_h200

Every instruction is its own program and process (`tensor_core_source`): one that does not compile, crashes or hangs
is a finding
of its own. Each is asked (1) small whole numbers, where any order is exact: is our layout right? (2) at least a million
random and adversarial dots in regimes, (3) the open questions, by hand, (4) the three GEMMs of a small layer, steps in
order of k. Written: tensor_core.json (findings, questions and answers) and tensor_core.npz (vectors that CPU tests
replay).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwsim.errors import HwsimError
from hwsim.measurement import device as machine
from hwsim.measurement.record import write_atomically
from hwsim.measurement.tensor_core_model import HYPOTHESES, Hypothesis, chip_parameters, fused_dots
from hwsim.measurement.tensor_core_source import INSTRUCTIONS, STEP_BYTES, Instruction, compile_program
from hwsim.measurement.tensor_core_vectors import Batch, ask, batches, code_type, decode, encode, questions

SCHEMA = "tensor_core/1"
DOTS = 1 << 21
STORED_DOTS = 256  # of each regime, for replay without a GPU
LAYER = (64, 128, 64)  # batch, inputs, outputs: multiples of every tile and of every format's terms

Run = Callable[[Batch], np.ndarray]  # codes of the results, (tiles, rows, 8)


def execute(program: Path, instruction: Instruction, batch: Batch, timeout_s: float = 60) -> np.ndarray:
    """Run a compiled program on a batch; returns the result codes (tiles, rows, 8).

    Raises RuntimeError with the program's message if it fails, subprocess.TimeoutExpired if it hangs.
    """
    tiles = len(batch.a)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in", Path(folder) / "out"
        with source.open("wb") as stream:
            stream.write(np.array([tiles, batch.steps, 1], np.int32).tobytes())
            for operand in (batch.a, batch.b):
                stream.write(step_words(operand, batch.steps).tobytes())
            stream.write(np.ascontiguousarray(batch.c).tobytes())
        done = subprocess.run(
            [str(program), str(source), str(target)], capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[:300]}")
        return np.frombuffer(target.read_bytes(), code_type(instruction.output)).reshape(batch.c.shape)


def step_words(operand: np.ndarray, steps: int) -> np.ndarray:
    """Order codes (tiles, lines, K) as (tiles, steps, lines, terms): 32 bytes of k for every line of every step."""
    tiles, lines, k = operand.shape
    ordered = np.ascontiguousarray(operand.reshape(tiles, lines, steps, k // steps).transpose(0, 2, 1, 3))
    assert ordered.itemsize * (k // steps) == STEP_BYTES
    return ordered


@dataclass
class Examiner:
    """Asks one instruction of one chip; `run` is the chip (or, in tests, something that pretends to be)."""

    instruction: Instruction
    chip: str
    run: Run
    emulate: Callable[[Batch], np.ndarray] | None = None  # hwsim's own arithmetic; None: not at hand

    def expected(self, batch: Batch) -> np.ndarray:
        """What hwsim says: codes of the results."""
        return self.emulate(batch) if self.emulate else self.model(batch)

    def model(self, batch: Batch, hypothesis: Hypothesis = HYPOTHESES[0]) -> np.ndarray:
        """What the small numpy model says under one hypothesis (finite operands)."""
        fmt, out = self.instruction.operand, self.instruction.output
        a, b, c = decode(batch.a, fmt), decode(batch.b, fmt), decode(batch.c, out)
        tiles, rows, k = a.shape
        dots_a = np.broadcast_to(a[:, :, None], (tiles, rows, 8, k)).reshape(-1, k)
        dots_b = np.broadcast_to(b[:, None], (tiles, rows, 8, k)).reshape(-1, k)
        values = fused_dots(dots_a, dots_b, c.reshape(-1), self.instruction, self.chip, hypothesis)
        return to_codes(values, out).reshape(c.shape)

    def examine(self, dots: int = DOTS) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Ask everything; return the finding (plain data) and vectors for replay."""
        finding: dict[str, Any] = {"dots": 0, "mismatches": 0, "by_regime": {}, "examples": []}
        vectors: dict[str, np.ndarray] = {}
        for batch in batches(self.instruction, dots):
            got, wanted = self.run(batch), self.expected(batch)
            wrong = ~same_codes(got, wanted, self.instruction.output)
            finding["by_regime"][batch.regime] = {"dots": batch.dots, "mismatches": int(wrong.sum())}
            if batch.regime == "layout" and wrong.any():
                finding["reason"] = "whole numbers come out wrong: the fragment layout, not the arithmetic, is mistaken"
                finding["mismatches"] = None
                return finding, vectors
            finding["dots"] += batch.dots
            finding["mismatches"] += int(wrong.sum())
            finding["examples"] += [self._example(batch, place, got, wanted) for place in np.argwhere(wrong)[:3]]
            vectors |= self._stored(batch, got)
        finding["questions"] = self.answers()
        finding["layer"] = self.layer()
        return finding, vectors

    def answers(self) -> list[dict[str, Any]]:
        """Ask every question that the formats hold; say which hypotheses, and whether hwsim, give the chip's answer."""
        result: list[dict[str, Any]] = []
        asked = [
            (question, batch) for question in questions() if (batch := ask(self.instruction, question)) is not None
        ]
        if not asked:
            return result
        fields = {name: np.concatenate([getattr(batch, name) for _, batch in asked]) for name in ("a", "b", "c")}
        got = self.run(Batch("questions", fields["a"], fields["b"], fields["c"]))
        for place, (question, batch) in enumerate(asked):
            answer = int(got[place, 0, 0])
            out = self.instruction.output
            entry: dict[str, Any] = {
                "name": question.name,
                "asks": question.asks,
                "a": codes_text(batch.a[0, 0, : len(question.a)]),
                "b": codes_text(batch.b[0, 0, : len(question.b)]),
                "c": codes_text(batch.c[0, 0, :1])[0],
                "d": f"{answer:#x}",
                "value": float(decode(got[place, 0, :1], out)[0]).__repr__(),
            }
            finite = all(
                np.isfinite(decode(x, fmt)).all()
                for x, fmt in ((batch.a, self.instruction.operand), (batch.b, self.instruction.operand), (batch.c, out))
            )
            if finite and chip_parameters(self.chip, self.instruction):
                entry["hypotheses"] = [h.name for h in HYPOTHESES if self.model(batch, h)[0, 0, 0] == answer]
            try:
                entry["hwsim"] = f"{int(self.expected(batch)[0, 0, 0]):#x}"
                entry["hwsim_agrees"] = bool(
                    same_codes(self.expected(batch)[:, :1, :1], got[place : place + 1, :1, :1], out).all()
                )
            except (HwsimError, ValueError) as error:
                entry["hwsim"] = f"refused: {error}"
            result.append(entry)
        return result

    def layer(self) -> dict[str, int]:
        """Mismatches in the three GEMMs of a layer, run on the chip step after step of k, against hwsim's MAC."""
        batch, inputs, out = LAYER
        rng = np.random.default_rng(7)
        fmt = self.instruction.operand
        draw = lambda *shape: round_codes(np.asarray(rng.standard_normal(shape)), fmt)  # noqa: E731
        x, weight, g = draw(batch, inputs), draw(out, inputs), draw(batch, out)
        products = {
            "output": (x, weight),
            "grad_input": (g, weight.T),
            "grad_weight": (g.T, x.T),
        }  # rows of a, columns of b
        mismatches = {}
        for gemm, (a, b) in products.items():
            tiles = gemm_tiles(np.ascontiguousarray(a), np.ascontiguousarray(b), self.instruction)
            mismatches[gemm] = int((~same_codes(self.run(tiles), self.expected(tiles), self.instruction.output)).sum())
        return mismatches

    def _example(self, batch: Batch, place: np.ndarray, got: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
        tile, row, column = (int(i) for i in place)
        return {
            "regime": batch.regime,
            "a": codes_text(batch.a[tile, row]),
            "b": codes_text(batch.b[tile, column]),
            "c": f"{int(batch.c[tile, row, column]):#x}",
            "chip": f"{int(got[tile, row, column]):#x}",
            "hwsim": f"{int(wanted[tile, row, column]):#x}",
        }

    def _stored(self, batch: Batch, got: np.ndarray) -> dict[str, np.ndarray]:
        """A spread of single dots of this batch: operands and addend as codes, and the chip's result."""
        places = np.linspace(0, batch.c.size - 1, min(STORED_DOTS, batch.c.size)).astype(np.int64)
        tile, row, column = np.unravel_index(places, batch.c.shape)
        name = f"{self.instruction.id}/{batch.regime}"
        return {
            f"{name}/a": batch.a[tile, row],
            f"{name}/b": batch.b[tile, column],
            f"{name}/c": batch.c[tile, row, column],
            f"{name}/d": got[tile, row, column],
        }


def gemm_tiles(a: np.ndarray, b: np.ndarray, instruction: Instruction) -> Batch:
    """Cut a GEMM, a (m, k) and b (n, k) as codes, into one tile for every rows x 8 results; c = 0."""
    rows, k = instruction.rows, a.shape[1]
    blocks_a, blocks_b = a.reshape(-1, rows, k), b.reshape(-1, 8, k)
    tiles_a = np.repeat(blocks_a, len(blocks_b), axis=0)
    tiles_b = np.tile(blocks_b, (len(blocks_a), 1, 1))
    c = np.zeros((len(tiles_a), rows, 8), code_type(instruction.output))
    return Batch("layer", tiles_a, tiles_b, c, k // instruction.terms)


def round_codes(values: np.ndarray, fmt: str) -> np.ndarray:
    """Codes of normal-sized values rounded to nearest in a format (only to draw operands: any rounding would do)."""
    mantissa = {"float16": 10, "bfloat16": 7, "tf32": 10, "float8_e4m3fn": 3, "float8_e5m2": 2}[fmt]
    smallest = -6 if fmt == "float8_e4m3fn" else -14
    exponent = np.maximum(np.frexp(values)[1] - 1, smallest)
    return encode(np.ldexp(np.rint(np.ldexp(values, mantissa - exponent)), exponent - mantissa) + 0.0, fmt)


def to_codes(values: np.ndarray, output: str) -> np.ndarray:
    """Codes of results that the output format holds; NaN becomes the tensor core's own (all ones below the sign)."""
    with np.errstate(over="ignore", invalid="ignore"):
        codes = (
            values.astype(np.float16).view(np.uint16)
            if output == "float16"
            else values.astype(np.float32).view(np.uint32)
        )
    return np.where(np.isnan(values), code_type(output)(0x7FFF if output == "float16" else 0x7FFFFFFF), codes)


def same_codes(x: np.ndarray, y: np.ndarray, output: str) -> np.ndarray:
    """Where two results are the same, the sign of zero included; NaNs are equal to each other (their payload is
    recorded)."""
    return (x == y) | (np.isnan(decode(x, output)) & np.isnan(decode(y, output)))


def codes_text(codes: np.ndarray) -> list[str]:
    """Codes in hexadecimal."""
    return [f"{int(code):#x}" for code in codes.ravel()]


def hwsim_emulation(chip: str, instruction: Instruction) -> Callable[[Batch], np.ndarray] | None:
    """Return hwsim.matmul with the chip's named MAC as a function of a batch, or None where it cannot run."""
    try:
        import hwsim
        from hwsim.arithmetic.mac import named_mac

        mac = named_mac(f"{chip}.{instruction.id}")
        hwsim.matmul(np.ones((1, 4), np.float32), np.ones((4, 1), np.float32), mac)
    except (ImportError, AttributeError, HwsimError):
        return None

    def emulate(batch: Batch) -> np.ndarray:
        fmt, out = instruction.operand, instruction.output
        a = decode(batch.a, fmt).astype(np.float32)
        b = np.swapaxes(decode(batch.b, fmt).astype(np.float32), 1, 2)
        result = np.asarray(hwsim.matmul(a, b, mac, c=decode(batch.c, out).astype(np.float32)))
        return to_codes(result.astype(np.float64), out)

    return emulate


def chip_name(device_name: str) -> str:
    """Name of the chip as in the named MACs: "NVIDIA H200" gives h200; "" for one that is not known."""
    lowered = device_name.lower()
    return next((chip for chip in ("h200", "h100", "b200", "a100", "l40s", "v100") if chip in lowered), "")


def run(out: Path, seconds: float = 150, resume: bool = False, dots: int = DOTS, commit: str | None = None) -> int:
    """Examine every instruction that this chip has; returns the number that gave no verdict."""
    import torch

    end = time.monotonic() + seconds
    properties = torch.cuda.get_device_properties(0)
    chip, capability = chip_name(properties.name), f"{properties.major}.{properties.minor}"
    path, vector_path = out / "tensor_core.json", out / "tensor_core.npz"
    state: dict[str, Any] = {"schema": SCHEMA, "cases": []}
    vectors: dict[str, np.ndarray] = {}
    if resume and path.exists():
        state = json.loads(path.read_text(encoding="utf-8"))
        if vector_path.exists():
            vectors = dict(np.load(vector_path))
    commit = commit or machine.code_commit()
    # A verdict stands; a mismatch, or no verdict at all, is looked at again by other code.
    settled = {case["id"] for case in state["cases"] if case.get("mismatches") == 0 or case.get("commit") == commit}
    todo = [i for i in INSTRUCTIONS if i.id not in settled and (i.unit == "mma" or capability == "9.0")]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(8) as pool:
        programs = pool.map(lambda i: compile_program(i, Path(folder), capability), todo)
        for instruction, (program, message) in zip(todo, programs, strict=True):
            if time.monotonic() > end:
                print(f"tensor cores: no time left for {instruction.id}", flush=True)
                continue
            finding: dict[str, Any] = {
                "id": instruction.id,
                "instruction": instruction.ptx,
                "chip": chip or properties.name,
                "date": machine.now(),
                "commit": commit,
                "mismatches": None,
            }
            if program is None:
                finding["reason"] = f"does not compile: {message}"
            else:
                finding, vectors = _examine(instruction, chip, program, dots, finding, vectors)
            state["cases"] = [case for case in state["cases"] if case["id"] != instruction.id] + [finding]
            write_atomically(path, json.dumps(state, indent=1, allow_nan=False) + "\n")
            np.savez_compressed(vector_path, **vectors)  # type: ignore[arg-type]
            print(_line(finding), flush=True)
    return sum(case["mismatches"] is None for case in state["cases"])


def _examine(
    instruction: Instruction,
    chip: str,
    program: Path,
    dots: int,
    finding: dict[str, Any],
    vectors: dict[str, np.ndarray],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Examine one compiled instruction; whatever goes wrong becomes the finding's reason."""
    emulate = hwsim_emulation(chip, instruction)
    finding["against"] = "hwsim.matmul" if emulate else "the numpy model"
    if emulate is None and chip_parameters(chip, instruction) is None:
        return finding | {"reason": f"hwsim has no MAC named {chip}.{instruction.id}"}, vectors
    try:
        # The numpy model is some 100 times slower than the emulation kernels: fewer dots, which the finding then says.
        asked = dots if emulate else dots // 64
        found, stored = Examiner(
            instruction, chip, lambda batch: execute(program, instruction, batch), emulate
        ).examine(asked)
    except Exception as error:  # recorded, so that the next instruction gets its turn
        return finding | {"reason": f"{type(error).__name__}: {str(error)[:300]}"}, vectors
    return finding | found, vectors | stored


def _line(finding: dict[str, Any]) -> str:
    if finding["mismatches"] is None:
        return f"tensor core {finding['id']}: {finding['reason']}"
    layer = sum(finding["layer"].values())
    differ = f"{finding['mismatches']} of {finding['dots']} dots differ, {layer} in a layer's GEMMs"
    return f"tensor core {finding['id']}: {differ} ({finding['against']})"


def main(arguments: list[str] | None = None) -> int:
    """The command line; needs a CUDA device and nvcc."""
    parser = argparse.ArgumentParser(
        prog="python -m hwsim.measurement.tensor_core", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--out", default="runs/measure", help="folder of tensor_core.json and tensor_core.npz")
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--dots", type=int, default=DOTS, help="dot products for each instruction")
    parser.add_argument("--resume", action="store_true", help="leave out the instructions that have a verdict")
    parser.add_argument("--commit", help="commit to write into the records, where there is no git")
    options = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        print("tensor cores: no CUDA device", file=sys.stderr)
        return 3
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    run(out, options.seconds, options.resume, options.dots, options.commit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
