"""The float32 baselines of reports/: a short piece of each recipe runs as its committed record did, and docs state it.

The same seed gives the same bits only on the same machine with the same torch. Elsewhere a BLAS adds up in another
order, and runs drift apart step by step; so the first losses are compared within a tolerance that grows with the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hwsim
from hwsim.catalog import load_experiment, models, reports
from hwsim.data.dataset import Dataset, Split, load
from hwsim.experiment import Experiment
from hwsim.records import TrialRecord
from hwsim.results import Results
from hwsim.training.recipe import Recipe
from hwsim.training.result import TrainingSummary

BASELINES = {name.removeprefix("baseline_"): path for name, path in reports().items() if name.startswith("baseline_")}
PAGE = Path(__file__).parents[1] / "docs" / "models.md"

STEPS = {  # how far a test trains; within it the loss falls by much more than the tolerance
    "mlp_mnist": 64,
    "lenet_mnist": 64,
    "mlp_parser": 64,
    "lstm_pos_tagger": 24,
    "char_transformer": 48,
    "convnet_cifar10": 64,
    "resnet20_cifar10": 40,
}
SLOW = frozenset(STEPS) - {"mlp_mnist", "lenet_mnist", "mlp_parser"}
FIRST = 1e-3  # relative: before the first update nothing but one forward pass differs
LATER = 0.05  # relative, of the mean loss over the last quarter of the steps


def results_of(name: str) -> Results:
    path = BASELINES[name].parent / "results.json"
    if not path.is_file():
        pytest.skip(f"{name} was not run yet")
    return Results.read(path)


def trial(results: Results, seed: int = 0) -> TrialRecord:
    return next(t for t in results.trials if t.seed == seed)


def data_of(name: str) -> Dataset:
    try:
        return load(load_experiment(BASELINES[name]).data)
    except hwsim.SpecError as error:
        pytest.skip(f"no data: {error}")


def begin(name: str, data: Dataset, steps: int, **changes: object) -> TrainingSummary:
    """Train the first steps of a baseline's own recipe with seed 0."""
    point = load_experiment(BASELINES[name]).points()[0]
    recipe = point.recipe.model_copy(update=changes)
    return hwsim.train(hwsim.load_model(point.model), point.plan, data, seed=0, recipe=recipe, stop_after=steps).summary


def late(losses: Sequence[float | None]) -> float:
    """Return the mean of the last quarter."""
    return float(np.mean([np.nan if loss is None else loss for loss in losses[-len(losses) // 4 :]]))


def agrees(losses: Sequence[float | None], record: Sequence[float | None]) -> bool:
    """Return whether as many losses as there are go the way of the record."""
    record = record[: len(losses)]
    assert losses[0] is not None and record[0] is not None
    first = abs(losses[0] - record[0]) <= FIRST * record[0]
    return first and abs(late(losses) - late(record)) <= LATER * late(record)


@pytest.mark.parametrize("name", STEPS)
def test_a_record_learns_far_more_in_these_steps_than_the_tolerance(name: str) -> None:
    record = trial(results_of(name)).training.first_losses[: STEPS[name]]
    assert record[0] is not None
    assert record[0] - late(record) > 2 * LATER * late(record)


@pytest.mark.data
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in STEPS])
def test_a_short_piece_of_the_recipe_goes_the_way_of_the_record(name: str) -> None:
    results, data = results_of(name), data_of(name)
    record = trial(results).training
    found = begin(name, data, STEPS[name])
    assert found.hashes["data"] == record.hashes["data"] and found.parameters == record.parameters
    assert found.steps == STEPS[name] and found.outcome == "stopped"
    assert agrees(found.first_losses, record.first_losses), (found.first_losses, record.first_losses)


@pytest.mark.data
@pytest.mark.parametrize("name", ["mlp_mnist", pytest.param("lenet_mnist", marks=pytest.mark.slow)])
def test_the_first_evaluation_is_that_of_the_curve(name: str) -> None:
    results, data = results_of(name), data_of(name)
    curves = trial(results).training.curves
    step = curves["step"][0]
    assert step is not None
    found = begin(name, data, int(step)).curves
    for curve, within in (("dev_accuracy", 0.01), ("test_accuracy", 0.01), ("train_loss", 0.03), ("dev_loss", 0.03)):
        (ours,), theirs = found[curve], curves[curve][0]
        assert ours == pytest.approx(theirs, abs=within), curve


@pytest.mark.data
@pytest.mark.parametrize("kind", ["no learning", "labels shuffled", "half the rate", "data in another order"])
def test_a_broken_run_does_not_agree(kind: str) -> None:
    record = trial(results_of("mlp_mnist")).training.first_losses
    data, changes = data_of("mlp_mnist"), {}
    if kind == "no learning":
        changes = {"learning_rate": 1e-12}
    if kind == "half the rate":
        changes = {"learning_rate": 0.0005}
    train = data.train
    if kind == "labels shuffled":
        data = replace(data, train=Split(train.inputs, np.random.default_rng(0).permutation(train.targets)))
    if kind == "data in another order":
        data = replace(data, train=Split(train.inputs[::-1].copy(), train.targets[::-1].copy()))
    assert not agrees(begin("mlp_mnist", data, STEPS["mlp_mnist"], **changes).first_losses, record)


def test_every_network_that_the_page_lists_has_a_baseline() -> None:
    assert set(BASELINES) == set(STEPS) <= set(models())


# -- docs/models.md --------------------------------------------------------------------------------------------------


def recipe_in_words(recipe: Recipe) -> str:
    words = [f"{recipe.optimizer} {recipe.learning_rate:g}", f"batch {recipe.batch}", f"{recipe.epochs} epochs"]
    if recipe.momentum:
        words.insert(1, f"momentum {recipe.momentum:g}")
    if recipe.weight_decay:
        words.append(f"weight decay {recipe.weight_decay:g}")
    if recipe.decay_epochs:
        words.append(f"rate x {recipe.decay_factor:g} from epoch {recipe.decay_epochs[0] + 1} on")
    if recipe.augment != "none":
        words.append(recipe.augment)
    if recipe.train_examples is not None:
        words.append(f"{recipe.train_examples:,} examples")
    return ", ".join(words)


def loss_on_test(trained: list[TrainingSummary]) -> str:
    """Return the mean test loss of the selected evaluations in nats, for text in bits a character too."""
    if trained[0].measure != "accuracy":
        return trained[0].measure
    chosen = [t.curves["test_loss"][t.curves["dev_accuracy"].index(t.dev_accuracy)] for t in trained]
    mean = float(np.mean([np.nan if loss is None else loss for loss in chosen]))
    return f"{mean:.3f}" + (f" ({mean / np.log(2):.3f} bits)" if trained[0].data == "tiny_shakespeare" else "")


def rows_of(name: str, experiment: Experiment, results: Results | None) -> list[str]:
    """Return the lines that docs/models.md must hold about a baseline."""
    start = f"| `{name}` | {experiment.data} | {recipe_in_words(experiment.points()[0].recipe)} |"
    if results is None:
        return [f"{start} | not run yet | | | | |"]
    trained = [t.training for t in results.trials]
    dev, test = ([getattr(t, f"{split}_accuracy") * 100 for t in trained] for split in ("dev", "test"))
    minutes = sum(t.cpu_s or 0 for t in trained) / 60
    reached = " | ".join(
        f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")
        for values in (dev, test)
    )
    parts = (f"{trained[0].parameters:,}", reached, loss_on_test(trained), str(len(trained)), f"{minutes:.1f}")
    rows = [f"{start} {' | '.join(parts)} |"]
    for t in trained:
        hashes = " | ".join(f"`{t.hashes[key][:16]}`" for key in ("data", "initial_weights", "final_weights"))
        date = results.provenance.created[:10] if results.provenance else ""
        rows.append(f"| `{name}` | {t.seed} | {hashes} | {date} |")
    return rows


@pytest.mark.parametrize("name", STEPS)
def test_the_page_states_what_the_record_holds(name: str) -> None:
    path = BASELINES[name].parent / "results.json"
    results = Results.read(path) if path.is_file() else None
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    missing = [row for row in rows_of(name, load_experiment(BASELINES[name]), results) if row not in lines]
    assert not missing, "docs/models.md lacks:\n" + "\n".join(missing)
