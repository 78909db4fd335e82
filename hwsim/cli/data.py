"""`hwsim data`: which data sets there are, and downloading them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="List and download data sets.", rich_markup_mode="rich")


@app.command("list")
def list_data() -> None:
    """List the data sets and where each is.

    \b
    Example:
      hwsim data list
    """
    from hwsim.cli.listing import Kind, list_names

    list_names(Kind.DATA)


@app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="A data set, as `hwsim data list` prints it.")],
    out: Annotated[Path | None, typer.Option(help="Folder to download into (default: the user's cache).")] = None,
) -> None:
    """Download a data set from its publisher and check it against its SHA-256.

    \b
    Example:
      hwsim data fetch mnist
    """
    from hwsim.cli.screen import messages, output
    from hwsim.data.fetch import fetch as download

    folder = download(name, out, progress=lambda file: messages().print(f"fetching {file}", markup=False))
    output().print(f"{name}: ready in {folder}", markup=False)
