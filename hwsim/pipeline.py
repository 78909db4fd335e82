"""The whole path: an experiment is trained, its steps are simulated, and everything found becomes `Results`.

Every trial and every simulated step is written to the output folder when it is done, under the hash of all that
determines it. An interrupted run is finished by `resume=True`, which reads those records instead of computing them
again and so ends with the same numbers::

    runs/NAME/trials/KEY.json          what training found, and beside it the recorded steps (KEY.workload.json, .npz)
    runs/NAME/simulations/KEY.json     one step on one accelerator
    runs/NAME/results.json             all of it, with provenance
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import hwsim
from hwsim import provenance
from hwsim.accumulation import plan_on
from hwsim.analysis.sections import analyze
from hwsim.catalog import load_accelerator, load_experiment, load_model, model_file
from hwsim.data.dataset import Dataset, load
from hwsim.errors import HwsimError, SpecError, UnsupportedError
from hwsim.expected import Expected, comparison_section
from hwsim.experiment import Experiment, Point
from hwsim.hardware.accelerator import Accelerator
from hwsim.hardware.energy import load_energy_table
from hwsim.records import Configuration, Machine, SimulationRecord, TrialRecord
from hwsim.results import Provenance, Results, locked, write_atomically
from hwsim.section import Section
from hwsim.simulation.sparsity import Sparsity
from hwsim.spec import Spec, dump_json, load_json, to_plain
from hwsim.workload import Workload
from hwsim.workload_file import load_workload, save_workload

Work = Literal["trained", "dense", "zeros", "ideal"]
# How the simulator treats the recorded selection: as the machine can, or as each of its rivals would.
_SPARSITY: dict[Work, Sparsity] = {"trained": "real", "dense": "dense", "zeros": "zeros", "ideal": "ideal"}
_OPERANDS = ("input", "weight", "gradient")
Record = TypeVar("Record", bound=Spec)


@dataclass(frozen=True)
class Step:
    """Where a run stands, for a progress display."""

    stage: Literal["train", "simulate"]
    index: int  # the trial or simulation at work, counted from 0
    count: int
    name: str  # "fp8_topk, seed 0"
    share: float  # how much of it is done, 0 to 1
    note: str = ""


Progress = Callable[[Step], None]


@dataclass(frozen=True)
class Paths:
    """Where a run reads and writes, and whom it tells."""

    folder: Path
    resume: bool
    report: Progress


@dataclass(frozen=True, eq=False)
class Trial:
    """One configuration to be trained with one seed."""

    point: Point
    seed: int
    key: str

    @property
    def name(self) -> str:
        """How the trial is called on screen."""
        return f"{self.point.name}, seed {self.seed}"


def run(
    experiment: Experiment | Path | str,
    out: Path | str | None = None,
    only: str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    data_dir: Path | str | None = None,
    quick: bool = False,
) -> Results:
    """Train and simulate everything that an experiment asks for, and write ``results.json``.

    Args:
        experiment: the experiment, its file, or a shipped name.
        out: folder for records and results; ``runs/NAME`` unless given, ``runs/NAME-quick`` for a quick run.
        only: "train" stops before simulation; "simulate" uses what was trained into `out` before.
        resume: use the records of an interrupted run in `out` instead of computing them again.
        progress: called with a `Step` as work goes on.
        data_dir: folder of the data sets; HWSIM_DATA or the user's cache unless given.
        quick: run the experiment's quick form, the same code on less. Its results are marked, judge nothing, and never
            replace those of a whole run.

    Raises:
        SpecError: a mistake in the experiment or a file it names, another run is using `out`, or a quick run would
            replace whole results there.
        UnsupportedError: this machine or a back end cannot do what is asked.
    """
    if only not in (None, "train", "simulate"):
        raise SpecError(f"only: got {only!r}, expected 'train' or 'simulate'")
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment)
    names = [point.name for point in experiment.points()]
    if quick:
        experiment = experiment.quick_form()
    points, machines = experiment.points(), _accelerators(experiment)
    if only != "train":
        _check_formats(points, machines)
    points = tuple(resolved(point, machines) for point in points)
    expected = Expected.beside(experiment.folder)
    if expected is not None:  # a mistake in it should not wait for the end of the run
        expected.check_names(names, [machine.name for machine in machines])
    folder = Path(out) if out is not None else default_folder(experiment, quick)
    paths = Paths(folder, resume, progress or _ignore)
    started = time.monotonic()
    with locked(paths.folder):
        if quick:
            _refuse_whole_results(folder / "results.json")
        data = load(experiment.data, data_dir)
        trials = [
            Trial(point, seed, _trial_key(experiment, point, seed, data)) for point in points for seed in point.seeds
        ]
        records = _read_all(trials, paths) if only == "simulate" else _train_all(experiment, trials, data, paths)
        simulations = [] if only == "train" else _simulate_all(experiment, records, machines, paths)
        results = Results(
            quick=quick,
            experiment=to_plain(experiment),
            configurations=tuple(_configuration(point) for point in points),
            trials=tuple(records.values()),
            machines=tuple(Machine.of(accelerator) for accelerator in machines),
            simulations=tuple(simulations),
            target_accuracy=experiment.target_accuracy,
            provenance=_provenance(records.values(), data, time.monotonic() - started),
        )
        sections: tuple[Section, ...] = () if expected is None else (comparison_section(expected, results),)
        sections += analyze(experiment.analyses, results, experiment.folder)
        results = results.model_copy(update={"sections": sections})
        results.write(paths.folder / "results.json")
    return results


def default_folder(experiment: Experiment, quick: bool) -> Path:
    """Where a run writes unless told otherwise."""
    return Path("runs") / (f"{experiment.name}-quick" if quick else experiment.name)


def _refuse_whole_results(path: Path) -> None:
    """Keep a quick run from replacing what a whole run found."""
    if path.is_file() and not Results.read(path).quick:
        raise SpecError(
            f"{path}: holds the results of a whole run, which --quick does not replace; choose another --out"
        )


def _ignore(step: Step) -> None:
    """The progress display of a caller who wants none."""


# ---- training


def _trial_key(experiment: Experiment, point: Point, seed: int, data: Dataset) -> str:
    return _key(
        code=provenance.training_code(),
        torch=provenance.versions().get("torch", ""),
        model=provenance.hash_source(model_file(point.model, experiment.folder)),
        arguments=dict(point.model_arguments),
        data=[data.name, data.sha256],
        recipe=to_plain(point.recipe),
        plan=repr(point.plan),
        sparse=repr(point.sparse),
        seed=seed,
        **({"profile": True} if experiment.profile else {}),  # off, it leaves the keys as they are
    )


def _read_all(trials: Sequence[Trial], paths: Paths) -> dict[Trial, TrialRecord]:
    """What was trained before; an error names the first trial that is missing."""
    records = {}
    for trial in trials:
        record = _read_trial(trial, paths)
        if record is None:
            raise SpecError(
                f"{paths.folder}: holds no record of {trial.name} with these settings, data and code; "
                "run without --only first"
            )
        records[trial] = record
    return records


def _train_all(
    experiment: Experiment, trials: Sequence[Trial], data: Dataset, paths: Paths
) -> dict[Trial, TrialRecord]:
    records = {}
    for index, trial in enumerate(trials):
        here = Step("train", index, len(trials), trial.name, 0.0)
        paths.report(here)
        record = _read_trial(trial, paths) if paths.resume else None
        if record is None:
            record = _train(experiment, trial, data, paths, here)
        paths.report(replace(here, share=1.0, note=_outcome(record)))
        records[trial] = record
    return records


def _read_trial(trial: Trial, paths: Paths) -> TrialRecord | None:
    record = _read(_place(trial, paths), TrialRecord)  # two configurations of one meaning share a record
    return record and record.model_copy(update={"configuration": trial.point.name})


def _place(trial: Trial, paths: Paths) -> Path:
    return paths.folder / "trials" / f"{trial.key}.json"


def _train(experiment: Experiment, trial: Trial, data: Dataset, paths: Paths, here: Step) -> TrialRecord:
    from hwsim.training.loop import train  # torch is loaded only when something is trained

    def tell(share: float, note: str = "") -> None:
        paths.report(replace(here, share=min(share, 0.99), note=note))

    point = trial.point
    result = train(
        load_model(point.model, experiment.folder, **point.model_arguments),
        plan=point.plan,
        data=data,
        sparse=point.sparse,
        seed=trial.seed,
        recipe=point.recipe,
        out=paths.folder / "trials" / f"{trial.key}.checkpoint",
        resume=paths.resume,
        progress=tell,
        profile=experiment.profile,
    )
    arrays = _write_workload(result.workload, paths.folder, trial.key)
    record = TrialRecord(key=trial.key, configuration=point.name, training=result.summary, arrays=arrays)
    write_atomically(_place(trial, paths), dump_json(record))
    for left in paths.folder.glob(f"trials/{trial.key}.checkpoint*"):
        left.unlink()
    return record


def _write_workload(workload: Workload, folder: Path, key: str) -> dict[str, str]:
    path = folder / "trials" / f"{key}.workload.json"
    save_workload(workload, path)
    return {"workload": str(path.relative_to(folder))}


def _outcome(record: TrialRecord) -> str:
    accuracy = record.training.test_accuracy
    return record.training.outcome if accuracy is None else f"test accuracy {accuracy:.2%}"


def _configuration(point: Point) -> Configuration:
    return Configuration(
        name=point.name,
        family=point.family,
        precision=str(point.plan),
        sparse=None if point.sparse is None else str(point.sparse),
        settings=dict(point.settings),
    )


# ---- simulation


def _accelerators(experiment: Experiment) -> tuple[Accelerator, ...]:
    loaded = tuple(load_accelerator(name, experiment.folder) for name in experiment.accelerators)
    names = [accelerator.name for accelerator in loaded]
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"accelerators: two of them have the name {name!r}, expected each name once")
    return loaded


def resolved(point: Point, machines: Sequence[Accelerator]) -> Point:
    """The configuration with `order: accelerator` replaced by what these machines do, before anything is trained."""
    try:
        return replace(point, plan=plan_on(point.plan, machines))
    except HwsimError as error:
        raise type(error)(f"configurations.{point.family}.precision: {error}") from None


def _check_formats(points: Sequence[Point], machines: Sequence[Accelerator]) -> None:
    """Refuse operands that a machine cannot multiply before hours of training, not after."""
    for point in points:
        operands = {
            name: cast.format for rule in point.plan.rules for name, cast in rule.casts.items() if name in _OPERANDS
        }
        for machine in machines:
            for name, fmt in operands.items():
                try:
                    machine.peak_macs_per_cycle(fmt)
                except UnsupportedError as error:
                    where = f"configurations.{point.family}.precision: {name} {fmt} on {machine.name}"
                    raise UnsupportedError(f"{where}: {error}") from None


def _simulate_all(
    experiment: Experiment, records: Mapping[Trial, TrialRecord], machines: Sequence[Accelerator], paths: Paths
) -> list[SimulationRecord]:
    dense_only: tuple[Work, ...] = ("trained",)
    jobs = [
        (trial, accelerator, work)
        for accelerator in machines
        for trial in records
        for work in (_SPARSITY if trial.point.sparse else dense_only)
    ]
    found = []
    for index, (trial, accelerator, work) in enumerate(jobs):
        here = Step("simulate", index, len(jobs), f"{trial.name} on {accelerator.name}, {work}", 0.0)
        paths.report(here)
        found.append(_simulate(experiment, trial, records[trial], accelerator, work, paths))
        paths.report(replace(here, share=1.0))
    return found


def _simulate(
    experiment: Experiment, trial: Trial, record: TrialRecord, accelerator: Accelerator, work: Work, paths: Paths
) -> SimulationRecord:
    from hwsim.simulation.engine import simulate  # simpy is loaded only when something is simulated

    key = _key(
        code=provenance.simulation_code(),
        trial=trial.key,
        work=work,
        engine=experiment.engine,
        accelerator=to_plain(accelerator),
        prices=to_plain(load_energy_table(accelerator.energy.table)),
    )
    place = paths.folder / "simulations" / f"{key}.json"
    done = _read(place, SimulationRecord) if paths.resume else None
    if done is not None:
        return done.model_copy(update={"configuration": trial.point.name})
    workload = load_workload(paths.folder / record.arrays["workload"])
    result = simulate(workload, accelerator, experiment.engine, sparsity=_SPARSITY[work])
    simulated = SimulationRecord.of(trial.point.name, trial.seed, work, result)
    write_atomically(place, dump_json(simulated))
    return simulated


# ---- records


def _read(path: Path, kind: type[Record]) -> Record | None:
    return load_json(path, kind) if path.is_file() else None


def _provenance(records: Iterable[TrialRecord], data: Dataset, wall_s: float) -> Provenance:
    backends = {name for record in records for name in record.training.backends}
    return Provenance(
        hwsim=hwsim.__version__,
        code=provenance.code_state(),
        created=provenance.now(),
        wall_s=wall_s,
        versions=provenance.versions(),
        data={data.name: data.sha256},
        backends=tuple(sorted(backends)),
        device=provenance.device(),
    )


def _key(**parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
