"""The `hwsim` command: finds the subcommand, and turns every error that hwsim raises on purpose into one line.

Exit codes: 0 done, 1 an error in the input, 2 wrong usage, 3 not possible on this machine, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import hwsim
from hwsim.cli import (
    accumulator,
    assign,
    check,
    data,
    demo,
    doctor,
    listing,
    measure,
    report,
    run,
    show,
    simulate,
    vectors,
)
from hwsim.cli.screen import print_error
from hwsim.errors import HwsimError

INTERRUPTED = 130

app = typer.Typer(
    name="hwsim",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `hwsim demo`. Every command has examples: `hwsim simulate --help`.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hwsim {hwsim.__version__}")
        raise typer.Exit


@app.callback()
def _hwsim(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train real networks in emulated low-precision arithmetic, and cost the very same steps on an accelerator."""


app.command("demo")(demo.demo)
app.command("run")(run.run)
app.command("assign")(assign.assign)
app.command("simulate")(simulate.simulate)
app.command("accumulator")(accumulator.accumulator)
app.command("measure")(measure.measure)
app.command("report")(report.report)
app.command("list")(listing.list_names)
app.command("show")(show.show)
app.command("check")(check.check)
app.add_typer(data.app, name="data")
app.command("vectors")(vectors.vectors)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Run the command line and leave with its exit code; an error in the input never shows a traceback."""
    try:
        app(prog_name="hwsim")  # leaves by SystemExit: 0, 2 for wrong usage, 130 when interrupted
    except HwsimError as error:
        print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
