"""`hwsim simulate`: what GEMMs or a recorded training step cost on an accelerator; no training, no torch."""

from __future__ import annotations

import csv
import io
import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hwsim.hardware.accelerator import Accelerator
    from hwsim.simulation.result import SimulationResult
    from hwsim.workload import Workload

COLUMNS = ("m", "n", "k", "format")


class Engine(StrEnum):
    """How the answer is computed; both give the same."""

    FAST = "fast"
    EVENTS = "events"


class Sparsity(StrEnum):
    """How much of the pruned work is saved."""

    REAL = "real"
    DENSE = "dense"
    ZEROS = "zeros"
    IDEAL = "ideal"


class Objective(StrEnum):
    """What the mapping search makes small."""

    CYCLES = "cycles"
    ENERGY = "energy"
    EDP = "edp"


class Activations(StrEnum):
    """What becomes of activations until the backward pass needs them."""

    KEPT = "kept"
    RECOMPUTED = "recomputed"


def simulate(
    accelerator: Annotated[str, typer.Option(help="A shipped accelerator (hwsim list accelerators) or a YAML file.")],
    gemm: Annotated[list[str] | None, typer.Option(help="M,N,K of one GEMM; may be given again.")] = None,
    gemms: Annotated[Path | None, typer.Option(help="CSV file with the columns m,n,k and perhaps format.")] = None,
    workload: Annotated[Path | None, typer.Option(help="A recorded step: runs/NAME/trials/KEY.workload.json.")] = None,
    topology: Annotated[Path | None, typer.Option(help="SCALE-Sim topology CSV, convolutions or GEMMs.")] = None,
    training: Annotated[bool, typer.Option("--training", help="With --topology: one whole training step.")] = False,
    batch: Annotated[int, typer.Option(help="With --topology: examples in a batch.", min=1)] = 1,
    format: Annotated[str, typer.Option(help="Number format of the operands; a workload has its own.")] = "bfloat16",
    sparsity: Annotated[Sparsity, typer.Option(help="What becomes of a workload's top-k selection.")] = Sparsity.REAL,
    activations: Annotated[
        Activations, typer.Option(help="A training step keeps them for backward, or recomputes them by segments.")
    ] = Activations.KEPT,
    mapping: Annotated[str | None, typer.Option(help="Pin the mapping, written as --json prints it.")] = None,
    engine: Annotated[Engine, typer.Option(help="events: by SimPy; fast: its twin, a recurrence.")] = Engine.FAST,
    objective: Annotated[Objective, typer.Option(help="What the mapping search makes small.")] = Objective.CYCLES,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, in input order.")] = False,
    csv_out: Annotated[Path | None, typer.Option("--csv", help="Write one row an op and step to this file.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Write the timeline for ui.perfetto.dev to this file.")] = None,
) -> None:
    """Say how many cycles, microseconds and picojoules work takes on an accelerator, and where they go.

    M rows times K columns times N columns: an M x K matrix times a K x N matrix.

    \b
    Examples:
      hwsim simulate --gemm 64,500,784 --accelerator systolic_32x32
      hwsim simulate --gemms shapes.csv --format float8_e4m3fn --accelerator my_chip.yaml --json
      hwsim simulate --workload runs/quickstart/trials/KEY.workload.json --accelerator systolic_32x32
      hwsim simulate --topology resnet18.csv --training --batch 32 --accelerator systolic_128x128 --trace step.json
    """
    from hwsim.catalog import load_accelerator
    from hwsim.simulation.engine import simulate as run
    from hwsim.simulation.recompute import recompute_activations

    if bool(gemm) + (gemms is not None) + (workload is not None) + (topology is not None) != 1:
        raise typer.BadParameter("give exactly one of --gemm, --gemms, --workload and --topology")
    jobs = (
        _read_topology(topology, batch, format, training)
        if topology is not None
        else _read_workload(workload)
        if workload is not None
        else _gemm_jobs(gemm or [], gemms, format)
    )
    machine = load_accelerator(accelerator)
    if activations is Activations.RECOMPUTED:
        jobs = [recompute_activations(work) for work in jobs]
    choices: dict[str, Any] = {"sparsity": sparsity.value, "objective": objective.value, "mapping": mapping}
    results = [run(work, machine, engine.value, **choices) for work in jobs]
    if csv_out is not None:
        _write_csv(results, csv_out)
    if trace is not None:
        _write_trace(jobs, machine, trace, choices)
    if as_json:
        typer.echo(json.dumps([_plain(work, result) for work, result in zip(jobs, results, strict=True)], indent=2))
    else:
        _print(jobs, results, machine)


def _gemm_jobs(gemm: list[str], gemms: Path | None, format: str) -> list[Workload]:
    from hwsim.simulation.engine import gemm_workload

    shapes = _read_gemms(gemms, format) if gemms is not None else [_shape(text, format) for text in gemm]
    return [gemm_workload([shape], name="x".join(map(str, shape[:3]))) for shape in shapes]


def _read_workload(path: Path) -> list[Workload]:
    from hwsim.workload_file import load_workload

    return [load_workload(path)]


def _read_topology(path: Path, batch: int, format: str, training: bool) -> list[Workload]:
    """One job a layer, or one training step of them all."""
    from hwsim.simulation.topology import read_topology, workload_of

    layers = read_topology(path)
    if training:
        return [workload_of(layers, name=path.stem, batch=batch, format=format, training=True)]
    return [workload_of([layer], name=layer.name, batch=batch, format=format) for layer in layers]


def _shape(text: str, format: str) -> tuple[int, int, int, str]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 3 or not all(map(_is_count, parts)):
        raise typer.BadParameter(f"got {text!r}, expected M,N,K, three whole numbers of 1 or more", param_hint="--gemm")
    m, n, k = map(int, parts)
    return m, n, k, format


def _is_count(text: str) -> bool:
    """Whether this is a whole number of 1 or more; isdecimal alone would let other scripts' digits through."""
    return text.isascii() and text.isdecimal() and len(text) < 100 and int(text) > 0


def _read_gemms(path: Path, format: str) -> list[tuple[int, int, int, str]]:
    """Rows of a CSV file with a header; a row without a format takes `format`."""
    from hwsim.document import read_text
    from hwsim.errors import SpecError, describe_place
    from hwsim.spec_errors import near

    rows = csv.DictReader(io.StringIO(read_text(path)), skipinitialspace=True)
    header = [name.strip() for name in rows.fieldnames or ()]
    rows.fieldnames = header
    problems = [
        describe_place(str(path), 1, name, f"unknown column, expected m,n,k or m,n,k,format{near(name, COLUMNS)}")
        for name in header
        if name not in COLUMNS
    ]
    problems += [describe_place(str(path), 1, name, "column is missing") for name in "mnk" if name not in header]
    if problems:
        raise SpecError(*problems)
    shapes = []
    for row in rows:
        sizes = []
        for name in "mnk":
            text = (row.get(name) or "").strip()
            if not _is_count(text):
                message = f"got {text!r}, expected a whole number of 1 or more"
                problems.append(describe_place(str(path), rows.line_num, name, message))
            sizes.append(int(text) if _is_count(text) else 0)
        shapes.append((*sizes, (row.get("format") or "").strip() or format))
    if not shapes:
        problems.append(f"{path}: holds no rows")
    if problems:
        raise SpecError(*problems)
    return shapes  # type: ignore[return-value]


def _plain(work: Workload, result: SimulationResult) -> dict[str, Any]:
    """What --json prints for one job: means over the recorded steps, energy at nominal prices by component."""
    op = work.ops[0]
    shape = {"m": op.m, "n": op.n, "k": op.k, "format": str(work.tensors[op.reads[0]].format)}
    return {
        "workload": result.workload,
        **(shape if len(work.ops) == 1 else {"steps": list(work.recorded_steps)}),
        "accelerator": result.accelerator,
        "cycles": result.cycles,
        "time_us": result.time_us,
        "energy_pj": {name: price.nominal for name, price in result.energy.items()},
        "energy_total_pj": {
            "low": result.energy_range.low,
            "nominal": result.energy_range.nominal,
            "high": result.energy_range.high,
        },
        "stalls": result.stalls,
        "utilization": result.utilization,
        "peak_memory_bytes": result.peak_memory_bytes,
        "bytes": result.bytes,
        **({"mapping": result.ops[0].mapping} if len(work.ops) == 1 else {}),
        "notes": list(result.notes),
    }


def _print(jobs: list[Workload], results: list[SimulationResult], machine: Accelerator) -> None:
    from hwsim.cli.screen import output, print_table

    headings = ("work", "cycles", "time us", "energy nJ", "utilization", "DRAM bytes", "waits for")
    rows = []
    for work, result in zip(jobs, results, strict=True):
        cause, idle = max(result.stalls.items(), key=lambda pair: pair[1])
        rows.append(
            (
                result.workload
                if len(work.ops) > 1
                else f"{result.workload} {work.tensors[work.ops[0].reads[0]].format}",
                f"{result.cycles:,.0f}",
                f"{result.time_us:,.2f}",
                f"{result.energy_pj / 1e3:,.2f}",
                f"{result.utilization:.1%}",
                f"{result.bytes.get('dram', 0):,.0f}",
                f"{cause} ({idle / result.cycles:.0%} of the time)" if idle else "nothing",
            )
        )
    print_table(f"{machine.name}, {machine.clock.running_ghz:g} GHz", headings, rows, right=headings[1:6])
    notes = dict.fromkeys(note for result in results for note in result.notes)
    for note in notes:
        output().print(f"Note: {note}", markup=False)


def _write_trace(jobs: list[Workload], machine: Accelerator, path: Path, choices: dict[str, Any]) -> None:
    from hwsim.errors import SpecError
    from hwsim.results import write_atomically
    from hwsim.simulation.timeline import trace

    if len(jobs) != 1:
        raise SpecError(f"--trace: got {len(jobs)} jobs, expected one: a timeline shows one step or GEMM")
    write_atomically(path, json.dumps(trace(jobs[0], machine, **choices), allow_nan=False))


def _write_csv(results: list[SimulationResult], path: Path) -> None:
    from hwsim.results import write_atomically

    rows = [row for result in results for row in result.rows()]
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(columns), restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
