"""`hwsim report`: the page and the tables of results that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[
        Path, typer.Argument(help="A results.json, the folder that holds one, or a folder of such folders.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for index.html (default: beside the results).")] = None,
) -> None:
    """Draw the page from results.json alone, and print its tables; for a folder of studies, all pages and an overview.

    \b
    Examples:
      hwsim report runs/quickstart
      hwsim report reports/meprop_mnist --out /tmp/page
      hwsim report reports                (every study, and a page that links them)
    """
    from hwsim.cli.screen import output
    from hwsim.cli.summary import print_summary
    from hwsim.report.page import write_page
    from hwsim.results import Results

    if results.is_dir() and not (results / "results.json").is_file():
        from hwsim.report.overview import write_overview

        output().print(f"Overview: {write_overview(results, out)}", markup=False)
        return
    found = Results.read(results)
    folder = out or (results if results.is_dir() else results.parent)
    page = write_page(found, folder)
    print_summary(found)
    output().print(f"\nReport: {page}", markup=False)
