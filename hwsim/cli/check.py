"""`hwsim check`: every shipped or named file, all mistakes at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def check(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH]...", help="Files or folders (default: everything shipped).")
    ] = None,
) -> None:
    """Check files and print all their mistakes, each with file, line and field.

    \b
    Examples:
      hwsim check                        (everything shipped)
      hwsim check my_study.yaml my_chip.yaml my_net.py
      hwsim check accelerators/
    """
    from hwsim.cli.files import check_file, shipped_files
    from hwsim.cli.screen import messages, output, print_error
    from hwsim.errors import HwsimError, SpecError

    files = _files(paths) if paths else shipped_files()
    wrong = 0
    for path in files:
        try:
            check_file(path)
        except HwsimError as error:
            wrong += 1
            print_error(error)
    if not files:
        raise SpecError("nothing to check: no YAML, JSON or Python file there")
    if wrong:
        messages().print(f"{len(files)} files checked, {wrong} with mistakes")
        raise typer.Exit(1)
    output().print(f"{len(files)} files checked, all good")


def _files(paths: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.rglob("*.y*ml") if p.is_file())
            found += sorted(p for p in path.glob("*.py") if p.name != "__init__.py")
        else:
            found.append(path)
    return found
