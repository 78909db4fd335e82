"""Everything a run found, in one file: what was asked, what was trained and simulated, and how it came about.

`Results` is what `results.json` holds, what the page is drawn from and what studies are compared by. It is plain
data: reading it needs neither torch nor the machine that made it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, JsonValue, model_validator

from hwsim.document import Document
from hwsim.errors import SpecError
from hwsim.records import Configuration, Machine, SimulationRecord, TrialRecord
from hwsim.section import Section
from hwsim.spec import Spec, field_problem, load_json, to_plain
from hwsim.summary import Summary, summarize

_LINE = 160  # characters of one line of results.json
_HELD_ONCE = ("ops", "assumptions")  # lists of a simulation whose items many simulations have in common


class Provenance(Spec):
    """How a result came about. It never holds a host name, a user name or an absolute path."""

    hwsim: str
    """Version of hwsim."""
    code: str
    """Commit of the code, or a hash of its files where there is no git; says so if files were changed."""
    created: str
    """UTC, ISO 8601, to the second."""
    wall_s: float = Field(default=0.0, ge=0)
    versions: dict[str, str] = Field(default_factory=dict)
    """Python and the libraries that can move a number: torch, numpy, numba, simpy."""
    data: dict[str, str] = Field(default_factory=dict)
    """sha256 of each data set, by name."""
    backends: tuple[str, ...] = ()
    device: str = ""
    """Processor or GPU model, cores and threads, without the machine's name."""
    notes: tuple[str, ...] = ()


class Results(Spec):
    """The content of results.json."""

    SCHEMA: ClassVar[str | None] = "results/2"
    OLDER: ClassVar[tuple[str, ...]] = ("results/1",)  # every simulation with its own ops and assumptions

    quick: bool = False
    """Whether this is the shortened form that only shows that everything works: its numbers answer nothing."""
    experiment: dict[str, JsonValue]
    """The experiment file as plain data, defaults written out; `name` is required."""
    configurations: tuple[Configuration, ...] = ()
    trials: tuple[TrialRecord, ...] = ()
    machines: tuple[Machine, ...] = ()
    simulations: tuple[SimulationRecord, ...] = ()
    sections: tuple[Section, ...] = ()
    """What a study adds to its page: validation, measurement, ours beside published numbers."""
    target_accuracy: float | None = Field(default=None, gt=0, le=1)
    """Dev accuracy (a share) that "to the target" means; None: one point under the baseline's mean dev accuracy."""
    answer: str = ""
    """The author's own answer to the question, if there is one; the page never invents it."""
    provenance: Provenance

    @model_validator(mode="after")
    def _names_agree(self) -> Results:
        if not isinstance(self.experiment.get("name"), str):
            raise field_problem("experiment.name", "missing, expected the experiment's name")
        names = [configuration.name for configuration in self.configurations]
        machines = [machine.name for machine in self.machines]
        _refuse_twice("configurations", names)
        _refuse_twice("machines", machines)
        _refuse_twice("trials", [(trial.configuration, trial.seed) for trial in self.trials])
        _refuse_twice("simulations", [(s.configuration, s.accelerator, s.work, s.seed) for s in self.simulations])
        for index, trial in enumerate(self.trials):
            _refuse_unknown(f"trials.{index}.configuration", trial.configuration, names)
        for index, simulation in enumerate(self.simulations):
            _refuse_unknown(f"simulations.{index}.configuration", simulation.configuration, names)
            _refuse_unknown(f"simulations.{index}.accelerator", simulation.accelerator, machines)
        baseline = self.experiment.get("baseline")
        if names and isinstance(baseline, str):
            _refuse_unknown("experiment.baseline", baseline, names)
        return self

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return str(self.experiment["name"])

    @property
    def question(self) -> str:
        """The question that the experiment asks, in its author's words; empty if it states none."""
        question = self.experiment.get("question")
        return question if isinstance(question, str) else ""

    @property
    def baseline(self) -> str | None:
        """Configuration that the others are compared with: the one named, else the first."""
        named = self.experiment.get("baseline")
        if isinstance(named, str):
            return named
        return self.configurations[0].name if self.configurations else None

    @cached_property
    def _summary(self) -> Summary:
        return summarize(
            self.configurations, self.trials, self.machines, self.simulations, self.baseline, self.target_accuracy
        )

    def summary(self) -> Summary:
        """Accuracy of every configuration, its costs on every accelerator, and what top-k gains (computed once)."""
        return self._summary

    def gaps(self) -> tuple[str, ...]:
        """What the experiment asks for and this file does not have, one sentence each."""
        trained = {(trial.configuration, trial.seed) for trial in self.trials}
        simulated = {(s.configuration, s.accelerator) for s in self.simulations if s.work == "trained"}
        gaps = []
        for configuration in self.configurations:
            missing = [seed for seed in self._seeds_of(configuration) if (configuration.name, seed) not in trained]
            if missing:
                gaps.append(f"{configuration.name} has no trial with seed {', '.join(map(str, missing))}.")
            for machine in self.machines:
                if (configuration.name, machine.name) not in simulated:
                    gaps.append(f"{configuration.name} was not simulated on {machine.name}.")
        return tuple(gaps)

    def _seeds_of(self, configuration: Configuration) -> list[int]:
        """The seeds that the experiment asks for: the configuration's own, else those of all."""
        families = self.experiment.get("configurations")
        family = families.get(configuration.family) if isinstance(families, dict) else None
        own = _numbers(family.get("seeds")) if isinstance(family, dict) else []
        return own or _numbers(self.experiment.get("seeds"))

    def write(self, path: Path | str) -> Path:
        """Write results.json whole or not at all; returns the path."""
        return write_atomically(Path(path), f"{compact_json(_shared(to_plain(self)))}\n")

    @classmethod
    def read(cls, path: Path | str) -> Results:
        """Read results.json, or the one in a folder.

        Raises:
            SpecError: with file, line and field of everything that is wrong.
        """
        place = Path(path)
        return load_json(place / "results.json" if place.is_dir() else place, cls, prepare=_whole)


def _shared(plain: dict[str, Any]) -> dict[str, Any]:
    """Hold once, under ``shared``, what simulations have in common; they keep the numbers of their items there.

    Dense rivals and ops that nothing pruned are the same from simulation to simulation: a tenth is left of them.
    """
    shared: dict[str, list[Any]] = {}
    simulations = [dict(simulation) for simulation in plain["simulations"]]
    for name in _HELD_ONCE:
        numbers: dict[str, int] = {}
        items = shared[name] = []
        for simulation in simulations:
            for item in simulation[name]:
                if numbers.setdefault(json.dumps(item), len(items)) == len(items):
                    items.append(item)
            simulation[name] = [numbers[json.dumps(item)] for item in simulation[name]]
    return {**plain, "shared": shared, "simulations": simulations}


def _whole(document: Document) -> Document:
    """Undo `_shared`; a file without ``shared`` is one of results/1.

    Raises:
        SpecError: a simulation has the number of an item that is not there.
    """
    plain = document.data
    shared = plain.get("shared") if isinstance(plain, dict) else None
    if not isinstance(shared, dict) or not isinstance(plain.get("simulations"), list):
        return document
    rest = {key: value for key, value in plain.items() if key != "shared"}
    rest["simulations"] = [
        {**simulation, **{name: _items(document, shared, index, name) for name in _HELD_ONCE if name in simulation}}
        if isinstance(simulation, dict)
        else simulation
        for index, simulation in enumerate(plain["simulations"])
    ]
    return Document(rest, document.lines, document.file)


def _items(document: Document, shared: dict[str, Any], index: int, name: str) -> Any:
    items, numbers = shared.get(name), document.data["simulations"][index][name]
    items = items if isinstance(items, list) else []
    count = len(items)
    if not isinstance(numbers, list):
        return numbers  # the model says what is wrong with it
    for number in numbers:
        if type(number) is not int or not 0 <= number < count:
            line = document.line(("simulations", index, name))
            came = f"got {number!r}, expected the number of one of the {count} items of shared.{name}"
            raise SpecError.at(document.file, line, f"simulations[{index}].{name}", came)
    return [items[number] for number in numbers]


def compact_json(value: Any, indent: int = 0) -> str:
    """Strict JSON text that a person can read and a diff can show, at about half the size of one value a line.

    What fits on one line stays on one line; longer lists and mappings have one entry a line.
    """
    if not isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    if isinstance(value, dict):
        ends = "{}"
        names = [f"{json.dumps(str(key), ensure_ascii=False)}: " for key in value]
        parts = [name + compact_json(item, indent + 1) for name, item in zip(names, value.values(), strict=True)]
    else:
        ends = "[]"
        parts = [compact_json(item, indent + 1) for item in value]
    fits = sum(map(len, parts)) + 2 * len(parts) + indent <= _LINE and not any("\n" in part for part in parts)
    if fits:
        return f"{ends[0]}{', '.join(parts)}{ends[1]}"
    inside = "\n" + " " * (indent + 1)
    return f"{ends[0]}{inside}{f',{inside}'.join(parts)}\n{' ' * indent}{ends[1]}"


def write_atomically(path: Path, text: str) -> Path:
    """Write `text` (UTF-8) so that a reader finds the old file or the whole new one, also after a crash.

    Raises:
        SpecError: the folder cannot be written to.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True) if temporary else None
        raise SpecError(f"{path}: cannot be written ({error.strerror or error})") from None
    except BaseException:  # interrupted: leave no half-written file behind
        Path(temporary).unlink(missing_ok=True) if temporary else None
        raise
    return path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one run; the lock goes when the process does, however it ends, and leaves no file behind.

    Raises:
        SpecError: another run holds it, or it cannot be written to.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise SpecError(f"{folder}: cannot be written to ({error.strerror or error})") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"{folder}: another run is using this folder, wait for it or choose another --out"
            raise SpecError(message) from None
        yield
    finally:
        os.close(handle)


def _umask() -> int:
    """The process's file mode mask; the system only tells it when it is set."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _refuse_twice(field: str, keys: list) -> None:
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise field_problem(field, f"got {twice[0]!r} {Counter(keys)[twice[0]]} times, expected once")


def _refuse_unknown(field: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise field_problem(field, f"got {name!r}, expected one of {', '.join(known) or 'none (the list is empty)'}")


def _numbers(value: JsonValue) -> list[int]:
    return [item for item in value if isinstance(item, int)] if isinstance(value, list) else []
