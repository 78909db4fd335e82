"""`hwsim demo`: the whole path on real data in about a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path | None, typer.Option(help="Folder for records and results (default: runs/quickstart).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Finish an interrupted demo to the same numbers.")] = False,
) -> None:
    """Train a small network on handwritten digits in float32 and in FP8, dense and top-k; simulate; report.

    The data come with scikit-learn, so nothing is downloaded. The experiment is the shipped file "quickstart":
    copy it with `hwsim show quickstart > my_study.yaml` and change it into your own.

    \b
    Examples:
      hwsim demo
      hwsim demo --out /tmp/demo
    """
    from hwsim.catalog import load_experiment
    from hwsim.cli.run import run_and_report

    run_and_report(load_experiment("quickstart"), out, None, resume, None, "hwsim demo")
