"""`hwsim list`: what there is, by kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Annotated

import typer

# the endless families beside the named formats
FAMILIES = (("eXmY", "float", "1+X+Y"), ("fixedW.F", "fixed", "W"), ("ufixedW.F", "fixed", "W"), ("intN", "fixed", "N"))


class Kind(StrEnum):
    """What can be listed."""

    FORMATS = "formats"
    ACCELERATORS = "accelerators"
    MODELS = "models"
    DATA = "data"
    REPORTS = "reports"
    BACKENDS = "backends"
    MACS = "macs"
    PRESETS = "presets"
    EXPERIMENTS = "experiments"


Row = tuple[str, ...]
Rows = tuple[Row, Sequence[Row]]  # headings, rows


def _formats() -> Rows:
    from hwsim.arithmetic.named import named_formats

    rows: list[Row] = [
        (name, f.kind, f"{f.bits_per_element:g}", f"{f.largest:g}", f"{_smallest(f):g}")
        for name, f in named_formats().items()
    ]
    families: list[Row] = [(name, kind, bits, "", "") for name, kind, bits in FAMILIES]
    return ("name", "kind", "bits", "largest", "smallest"), rows + families


def _smallest(fmt: object) -> float:
    for name in ("smallest_subnormal", "step"):
        if hasattr(fmt, name):
            return float(getattr(fmt, name))
    return _smallest(fmt.element)  # type: ignore[attr-defined]


def _accelerators() -> Rows:
    from hwsim.catalog import accelerators, load_accelerator

    rows = []
    for name in accelerators():
        machine = load_accelerator(name)
        arrays = machine.arrays
        size = f"{arrays.count} x {arrays.rows} x {arrays.cols}"
        rows.append(
            (
                name,
                size,
                f"{machine.clock.running_ghz:g}",
                f"{machine.dram.peak_gb_per_s:g}",
                _first_sentence(machine.description),
            )
        )
    return ("name", "arrays", "clock GHz", "DRAM GB/s", "what it is"), rows


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).partition(". ")[0].rstrip(".")


def _models() -> Rows:
    from hwsim.catalog import describe_model, models

    return ("name", "what it is"), [(name, describe_model(path)) for name, path in models().items()]


def _data() -> Rows:
    from hwsim.data.dataset import names, search_folders
    from hwsim.data.fetch import REMOTE

    folders = search_folders(None)
    rows = []
    for name in names():
        files = REMOTE.get(name, ())
        there = all(any((folder / file.relative).is_file() for folder in folders) for file in files)
        rows.append((name, "comes with scikit-learn" if not files else "here" if there else f"hwsim data fetch {name}"))
    return ("name", "where"), rows


def _reports() -> Rows:
    from hwsim.catalog import reports
    from hwsim.expected import study_line

    return ("name", "claim or question", "verdict"), [
        (name, *study_line(path.parent)) for name, path in reports().items()
    ]


def _backends() -> Rows:
    from hwsim.kernels.backends import NAMES, missing

    return ("name", "state"), [(name, missing(name) or "ready") for name in NAMES]


def _macs() -> Rows:
    from hwsim.arithmetic.mac import named_macs

    return ("name", "what it computes"), list(named_macs().items())


def _presets() -> Rows:
    from hwsim.training.presets import PRESETS

    summaries = [(make.__doc__ or "").strip().partition("\n")[0].removeprefix("Return ") for make in PRESETS.values()]
    return ("name", "what it is"), list(zip(PRESETS, summaries, strict=True))


def _experiments() -> Rows:
    from hwsim.catalog import experiments, load_experiment

    return ("name", "question"), [(name, load_experiment(name).question) for name in experiments()]


_LISTS: dict[Kind, Callable[[], Rows]] = {
    Kind.FORMATS: _formats,
    Kind.ACCELERATORS: _accelerators,
    Kind.MODELS: _models,
    Kind.DATA: _data,
    Kind.REPORTS: _reports,
    Kind.BACKENDS: _backends,
    Kind.MACS: _macs,
    Kind.PRESETS: _presets,
    Kind.EXPERIMENTS: _experiments,
}


def rows_of(kind: Kind) -> Rows:
    """Headings and rows of one list."""
    return _LISTS[kind]()


def list_names(
    kind: Kind,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of objects.")] = False,
) -> None:
    """List what there is of a kind.

    \b
    Examples:
      hwsim list formats
      hwsim list accelerators
      hwsim list macs --json
    """
    from hwsim.cli.screen import output, print_table

    headings, rows = rows_of(kind)
    if as_json:
        typer.echo(json.dumps([dict(zip(headings, row, strict=True)) for row in rows], indent=2))
        return
    if not rows:
        output().print(f"no {kind.value} here", markup=False)
        return
    print_table("", headings, rows)
