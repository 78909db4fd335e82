"""Files of any kind: reading one as what its schema line says, and checking it as deeply as possible."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hwsim.catalog import accelerators, energy_tables, load_accelerator, load_model, models, studies
from hwsim.data.dataset import loader
from hwsim.document import parse_json, parse_yaml, read_text
from hwsim.errors import SpecError
from hwsim.experiment import Experiment
from hwsim.hardware.accelerator import Accelerator
from hwsim.hardware.energy import load_energy_table
from hwsim.measurement.record import FILE_NAME, MeasurementFile
from hwsim.spec import Spec, load_json, load_yaml
from hwsim.spec_errors import near


def read_any(path: Path) -> Spec:
    """Read a YAML or JSON file as whatever its schema line says it is.

    Raises:
        SpecError: the file is missing, says no schema that hwsim knows, or holds mistakes (all of them are named).
    """
    document = (
        parse_json(read_text(path), str(path)) if path.suffix == ".json" else parse_yaml(read_text(path), str(path))
    )
    schema = document.data.get("schema") if isinstance(document.data, dict) else None
    kind = str(schema).partition("/")[0]
    homes = _file_kinds()
    if kind not in homes:
        found = f"got {schema!r}" if schema is not None else "missing"
        line = document.line(("schema",))
        raise SpecError.at(str(path), line, "schema", f"{found}, expected one of {', '.join(homes)}{near(kind, homes)}")
    module, name = homes[kind]
    model = getattr(importlib.import_module(module), name)
    value: Spec = load_json(path, model) if path.suffix == ".json" else load_yaml(path, model)
    return value.in_folder(path.parent) if kind == "experiment" else value  # type: ignore[attr-defined]


def _file_kinds() -> dict[str, tuple[str, str]]:
    """Schema to the class that reads it, imported only when such a file is met."""
    return {
        "assignment": ("hwsim.assignment.assignment", "Assignment"),
        "accelerator": ("hwsim.hardware.accelerator", "Accelerator"),
        "energy": ("hwsim.hardware.energy", "EnergyTable"),
        "expected": ("hwsim.expected", "Expected"),
        "experiment": ("hwsim.experiment", "Experiment"),
        "measured": ("hwsim.measurement.study", "MeasuredStudy"),
        "plan": ("hwsim.training.plan_file", "PlanSpec"),
        "validation": ("hwsim.validation.study", "Study"),
        "results": ("hwsim.results", "Results"),
        "workload": ("hwsim.workload_file", "WorkloadFile"),
    }


def shipped_files() -> list[Path]:
    """Every file that ships with hwsim and can be wrong."""
    named = [models(), accelerators(), energy_tables(), studies()]
    return [path for files in named for path in files.values()]


def check_file(path: Path) -> None:
    """Check one file as deeply as possible without training.

    Raises:
        SpecError: everything that is wrong with it.
        UnsupportedError: what it asks for cannot be done.
    """
    if path.suffix == ".py":
        read_text(path)
        load_model(path)
        return
    if path.name == FILE_NAME:  # the measuring side writes and reads its file without pydantic
        MeasurementFile.read(path)
        return
    value = read_any(path)
    if isinstance(value, Experiment):
        _check_experiment(value)
    elif isinstance(value, Accelerator):
        load_energy_table(load_accelerator(path).energy.table)


def _check_experiment(experiment: Experiment) -> None:
    """Everything that an experiment names must be there and sound; the problems of all come together."""
    from hwsim.pipeline import resolved  # loads much that other files do not need

    problems: list[str] = []

    def look(what: Callable[[], object]) -> None:
        try:
            what()
        except SpecError as error:
            problems.extend(error.problems)

    look(experiment.points)
    look(lambda: loader(experiment.data))
    for name in experiment.accelerators:
        look(partial(load_accelerator, name, experiment.folder))
    if not problems:
        for point in experiment.points():
            look(partial(load_model, point.model, experiment.folder, **point.model_arguments))
            machines = [load_accelerator(name, experiment.folder) for name in experiment.accelerators]
            look(partial(resolved, point, machines))
    if problems:
        raise SpecError(*dict.fromkeys(problems))
