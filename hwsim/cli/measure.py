"""`hwsim measure`: kernels on this machine, timed after a check, for the cross-check with the simulator."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Device(StrEnum):
    """What is measured."""

    AUTO = "auto"
    CUDA = "cuda"
    CPU = "cpu"


def measure(
    suite: Annotated[str, typer.Option(help="all, tensor_core, or families separated by commas.")] = "all",
    minutes: Annotated[float, typer.Option(help="Stop after so many minutes.")] = 9.0,
    out: Annotated[Path, typer.Option(help="Folder of measurements.json.")] = Path("runs/measure"),
    resume: Annotated[bool, typer.Option("--resume", help="Add to the file that is there.")] = False,
    device: Annotated[Device, typer.Option(help="auto takes a GPU if there is one.")] = Device.AUTO,
) -> None:
    """Measure dense and top-k kernels on this machine, the most valuable first, in slices that can be resumed.

    A kernel is timed only after its result was checked.

    \b
    Examples:
      hwsim measure --minutes 9 --resume --out reports/gpu_h200
      hwsim measure --device cpu --minutes 2
    """
    from hwsim.cli.screen import output
    from hwsim.measurement.suite import run

    console = output()
    run(out, suite, minutes, resume, device.value, tell=lambda text: console.print(text, markup=False))
