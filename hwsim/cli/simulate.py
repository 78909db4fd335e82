"""`hwsim simulate`: what GEMMs or a recorded training step cost on an accelerator, without training and without torch."""

from __future__ import annotations

import csv
import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hwsim.simulation.engine import GemmShape
    from hwsim.simulation.result import SimulationResult


class Engine(StrEnum):
    """How the answer is computed; both give the same."""

    FAST = "fast"
    EVENTS = "events"


def simulate(
    accelerator: Annotated[str, typer.Option(help="A shipped accelerator (hwsim list accelerators) or a YAML file.")],
    gemm: Annotated[list[str] | None, typer.Option(help="M,N,K of one GEMM; may be given again.")] = None,
    gemms: Annotated[Path | None, typer.Option(help="CSV file with the columns m,n,k and perhaps format.")] = None,
    workload: Annotated[Path | None, typer.Option(help="A recorded training step (runs/NAME/trials/*.workload.json).")] = None,
    topology: Annotated[Path | None, typer.Option(help="A SCALE-Sim topology CSV (GEMM or convolution).")] = None,
    format: Annotated[str, typer.Option(help="Number format of the operands.")] = "bfloat16",
    engine: Annotated[Engine, typer.Option(help="events: by SimPy; fast: its compiled twin.")] = Engine.FAST,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, in input order.")] = False,
) -> None:
    """Say how many cycles, microseconds and picojoules work takes on an accelerator, and where they go.

    \b
    Examples:
      hwsim simulate --gemm 64,500,784 --accelerator systolic_32x32
      hwsim simulate --gemms shapes.csv --format float8_e4m3fn --accelerator my_chip.yaml --json
      hwsim simulate --workload runs/quickstart/trials/KEY.workload.json --accelerator systolic_32x32
    """
    raise SystemExit
