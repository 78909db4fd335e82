"""`hwsim run`: an experiment file from training to the page."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hwsim.experiment import Experiment


class Half(StrEnum):
    """One half of a run."""

    TRAIN = "train"
    SIMULATE = "simulate"


DataDir = Annotated[Path | None, typer.Option(help="Folder of the data sets (default: HWSIM_DATA, then the cache).")]


def run(
    experiment: Annotated[str, typer.Argument(help="An experiment file, or the name of a shipped one.")],
    out: Annotated[Path | None, typer.Option(help="Folder for records and results (default: runs/NAME).")] = None,
    only: Annotated[Half | None, typer.Option(help="Do one half only.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Finish an interrupted run to the same numbers.")] = False,
    data_dir: DataDir = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Run the file's quick form: the same code on less, in about a minute.")
    ] = False,
) -> None:
    """Train and simulate what an experiment file asks for, and write results.json and the page index.html.

    \b
    Examples:
      hwsim run my_study.yaml
      hwsim run my_study.yaml --out runs/second --resume
      hwsim run my_study.yaml --only simulate      (after changing an accelerator)
      hwsim run my_study.yaml --quick              (does everything work? into runs/NAME-quick)
    """
    from hwsim.catalog import load_experiment, schema_kind, study_file
    from hwsim.errors import SpecError

    path = study_file(experiment)
    kind = schema_kind(path)
    if kind in ("validation", "measured") and quick:
        raise SpecError(f"--quick: {path.name} is of kind {kind}/1, which trains nothing and has no quick form")
    if kind in ("validation", "measured"):
        _run_comparison(path, kind, out, data_dir)
    else:
        command = f"hwsim run {experiment}" + (" --quick" if quick else "")
        run_and_report(load_experiment(experiment), out, only, resume, data_dir, command, quick)


def run_and_report(
    experiment: Experiment,
    out: Path | None,
    only: str | None,
    resume: bool,
    data_dir: Path | None,
    command: str,
    quick: bool = False,
) -> None:
    """Run with a progress display, print the tables, write the page, say where it is."""
    from hwsim import pipeline
    from hwsim.cli.screen import messages, output, run_progress
    from hwsim.cli.summary import print_summary
    from hwsim.report.page import write_page

    folder = out or pipeline.default_folder(experiment, quick)
    try:
        with run_progress() as progress:
            results = pipeline.run(experiment, folder, only, resume, progress, data_dir, quick)
    except KeyboardInterrupt:
        again = command if out is None else f"{command} --out {out}"
        messages().print(f"Interrupted. What is done is kept in {folder}; finish with: {again} --resume", markup=False)
        raise typer.Exit(130) from None
    page = write_page(results, folder)
    print_summary(results)
    output().print(f"\nReport: {page}", markup=False)


def _run_comparison(path: Path, kind: str, out: Path | None, data_dir: Path | None) -> None:
    """Run a study of kind validation/1 or measured/1, which trains nothing, and write its page as for every run."""
    from hwsim.cli.screen import messages, output
    from hwsim.cli.summary import print_sections
    from hwsim.report.page import write_page
    from hwsim.results import locked
    from hwsim.validation.measured import run_measured
    from hwsim.validation.run import run_study

    folder = out or Path("runs") / path.parent.name
    with locked(folder):
        console = messages()

        def tell(what: str) -> None:
            console.print(what, markup=False)

        results = run_measured(path, tell) if kind == "measured" else run_study(path, tell, data_dir=data_dir)
        results.write(folder / "results.json")
    page = write_page(results, folder)
    print_sections(results)
    output().print(f"\nReport: {page}", markup=False)
