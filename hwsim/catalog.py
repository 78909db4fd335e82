"""A name or a path to the thing itself: networks, accelerators, experiments, and what is shipped of each.

A shipped thing is a file in a folder, so listing the folder is the register. Whatever has a slash or a file's ending
is a path to the user's own file and is taken relative to `folder` (the folder of the experiment that names it).
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hwsim.document import is_path, read_text
from hwsim.errors import SpecError
from hwsim.spec import load_yaml
from hwsim.spec_errors import near

if TYPE_CHECKING:
    from torch import nn

    from hwsim.experiment import Experiment
    from hwsim.hardware.accelerator import Accelerator

_PACKAGE = Path(__file__).resolve().parent


def models() -> dict[str, Path]:
    """Shipped networks by name."""
    return _files(_shipped_folder("models"), ".py")


def accelerators() -> dict[str, Path]:
    """Shipped accelerators by name; other YAML files of the folder, such as energy tables, are left out."""
    files = _files(_shipped_folder("accelerators"), ".yaml")
    return {name: path for name, path in files.items() if schema_kind(path) == "accelerator"}


def energy_tables() -> dict[str, Path]:
    """Shipped tables of energy prices by name; they lie beside the accelerators."""
    files = _files(_shipped_folder("accelerators"), ".yaml")
    return {name: path for name, path in files.items() if schema_kind(path) == "energy"}


def experiments() -> dict[str, Path]:
    """Experiment files that are at hand by name: "quickstart", and the studies of a checkout."""
    return {name: path for name, path in studies().items() if schema_kind(path) == "experiment"}


def studies() -> dict[str, Path]:
    """Everything that `hwsim run` takes by name: experiments, and studies of other kinds such as the validation."""
    return {"quickstart": _PACKAGE / "quickstart.yaml", **reports()}


def study_file(name_or_path: str | Path) -> Path:
    """The file of a study. Raises SpecError if there is none."""
    return _find("experiment", name_or_path, studies(), None)


def reports() -> dict[str, Path]:
    """Experiment files of the studies in ``reports/``, by folder name; empty where hwsim runs without its checkout."""
    folder = _PACKAGE.parent / "reports"
    return {path.parent.name: path for path in sorted(folder.glob("*/experiment.yaml"))}


def describe_model(path: Path) -> str:
    """First line of a network file's docstring, read without importing it (or torch)."""
    try:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    except (OSError, SyntaxError, ValueError):
        return ""
    return text.strip().partition("\n")[0]


def load_model(name_or_path: str | Path, folder: Path | None = None, **arguments: Any) -> nn.Module:
    """Build a network: a shipped name, or a Python file that defines ``model(...) -> torch.nn.Module``.

    The file of a path is imported, which runs it.

    Raises:
        SpecError: there is no such network, its file cannot be imported, or `arguments` do not fit.
    """
    from torch import nn  # torch is slow to import and only networks need it

    path = model_file(name_or_path, folder)
    module = _import(path)
    make = getattr(module, "model", None)
    if not callable(make):
        raise SpecError(f"{path}: defines no function model(), expected 'def model() -> nn.Module'")
    try:
        network = make(**arguments)
    except TypeError as error:
        raise SpecError(f"{path}: model(): {error}") from None
    if not isinstance(network, nn.Module):
        raise SpecError(f"{path}: model() returned {type(network).__name__}, expected a torch.nn.Module")
    return network


def model_file(name_or_path: str | Path, folder: Path | None = None) -> Path:
    """The file of a network, which need not be importable. Raises SpecError if there is none."""
    return _find("model", name_or_path, models(), folder)


def load_accelerator(name_or_path: str | Path, folder: Path | None = None) -> Accelerator:
    """Read an accelerator: a shipped name, or a YAML file; a table of prices of its own lies relative to that file.

    Raises:
        SpecError: there is no such accelerator, or its file holds mistakes (all of them are named).
    """
    from hwsim.hardware.accelerator import Accelerator

    path = _find("accelerator", name_or_path, accelerators(), folder)
    machine = load_yaml(path, Accelerator)
    table = machine.energy.table
    if not is_path(table):
        return machine
    prices = machine.energy.model_copy(update={"table": os.path.relpath(path.parent / table)})
    return machine.model_copy(update={"energy": prices})


def load_experiment(name_or_path: str | Path) -> Experiment:
    """Read an experiment: a YAML file, the name of a study in ``reports/``, or "quickstart".

    Raises:
        SpecError: there is no such experiment, or its file holds mistakes (all of them are named).
    """
    from hwsim.experiment import Experiment

    path = study_file(name_or_path)
    return load_yaml(path, Experiment).in_folder(path.parent)


def _shipped_folder(name: str) -> Path:
    """Where an install, an editable install or the checkout keeps ``hwsim.models`` and ``hwsim.accelerators``."""
    spec = importlib.util.find_spec(f"hwsim.{name}")
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return _PACKAGE.parent / name


def _files(folder: Path, ending: str) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob(f"*{ending}")) if not path.stem.startswith("_")}


def schema_kind(path: Path) -> str:
    """The kind in the file's schema line ("experiment"), without parsing the rest; empty if it has none."""
    for line in read_text(path).splitlines():
        if line.startswith("schema:"):
            return line.partition(":")[2].strip().strip("\"'").partition("/")[0]
    return ""


def _find(kind: str, name: str | Path, shipped: dict[str, Path], folder: Path | None) -> Path:
    if isinstance(name, Path) or is_path(name):
        path = (folder or Path()) / name
        if path.is_file():
            return path
        raise SpecError(f"{kind}: {path}: {'is a folder, expected a file' if path.is_dir() else 'no such file'}")
    if name in shipped:
        return shipped[name]
    raise SpecError(unknown_name(kind, name, shipped))


def unknown_name(kind: str, name: str, known: Iterable[str], listing: bool = True) -> str:
    """The message for a name that nothing shipped has."""
    names = list(known)
    hint = near(name, names) or (f"; shipped are {', '.join(names) or 'none'}" if listing else "")
    return f"{kind}: got {name!r}, which is neither shipped nor a path{hint}"


def _import(path: Path) -> Any:
    name = f"hwsim_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise SpecError(f"{path}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # classes defined in the file must find their module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's file does wrong is a mistake in the input
        line = _line_in(error, path)
        where = f"{path}:{line}" if line else f"{path}"
        raise SpecError(f"{where}: cannot be imported ({type(error).__name__}: {error})") from None
    return module


def _line_in(error: Exception, path: Path) -> int | None:
    if isinstance(error, SyntaxError):
        return error.lineno
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return lines[-1] if lines else None
