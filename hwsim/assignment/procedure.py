"""From an experiment's network to widths: train in float32, look, balance, sweep, assign.

OUT/float.checkpoint          the float run, with all that was noted on the way (resumable)
OUT/assignment.json           what was found
OUT/plan.yaml                 the plan, for `hwsim.train` and an experiment's `precision:`
OUT/plan_less_TENSORS.yaml    the same with one bit less in one class of tensors (minimality test), if asked for
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwsim import provenance
from hwsim.assignment.assignment import CLASSES, Assignment, GridRecord, LayerRecord, SweepPoint
from hwsim.assignment.criteria import (
    INPUT_BITS,
    Grid,
    accumulator,
    activation_gradient,
    noise_offsets,
    power_above,
    weight_gradient,
    with_bits,
)
from hwsim.assignment.gradients import GradientStatistics, LayerStatistics
from hwsim.assignment.layers import Layer, assigned_layers, looking_at
from hwsim.assignment.noise_gain import EXAMPLES, NoiseGains, noise_gains
from hwsim.assignment.plan_text import forward_plan, plan_text
from hwsim.catalog import load_experiment, load_model
from hwsim.data.dataset import Split, load
from hwsim.errors import SpecError
from hwsim.experiment import Experiment
from hwsim.results import locked, write_atomically
from hwsim.spec import dump_json
from hwsim.training.emulation import emulate
from hwsim.training.loop import train
from hwsim.training.recipe import Recipe

SWEPT_EXAMPLES = 5_000
LARGEST_OFFSET = 19
LARGEST_WIDTH = 24  # of a tensor that travels in float32
TOLERANCE = 0.005

Progress = Callable[[str, float, str], None]
"""Called with the stage at work (train, gains, sweep), the share of it that is done, and a note."""


def assign(
    experiment: Experiment | Path | str,
    out: Path | str | None = None,
    configuration: str | None = None,
    seed: int | None = None,
    tolerance: float = TOLERANCE,
    one_bit_less: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    data_dir: Path | str | None = None,
) -> Assignment:
    """Train an experiment's network in float32, assign widths by the five criteria, and write the plan.

    Args:
        experiment: the experiment, its file, or a shipped name. Its optimizer must be sgd without momentum.
        out: folder for the plan and what it comes from; ``runs/NAME-assign`` unless given.
        configuration: whose network and training are taken; the baseline unless given. Its precision plays no part.
        seed: of the float run; the experiment's first unless given.
        tolerance: share of dev accuracy that weights and activations may cost; decides B_min.
        one_bit_less: also write the plans of the minimality test.
        resume: go on from an interrupted float run in `out`.
        progress: called with stage, share and note as work goes on.
        data_dir: folder of the data sets.

    Raises:
        SpecError: a mistake in the experiment, or a network whose gradients vanish.
        UnsupportedError: the network has layers that the criteria do not cover.
    """
    if not isinstance(experiment, Experiment):
        experiment = load_experiment(experiment)
    model_name, arguments, recipe = experiment.network(configuration)
    check_recipe(recipe)
    tell = progress or (lambda stage, share, note: None)
    seed = experiment.seeds[0] if seed is None else seed
    folder = Path(out) if out is not None else Path("runs") / f"{experiment.name}-assign"
    model = load_model(model_name, experiment.folder, **arguments)
    layers = assigned_layers(model)
    with locked(folder):
        data = load(experiment.data, data_dir)
        statistics = GradientStatistics()
        trained = train(
            model,
            plan="float32",
            data=data,
            seed=seed,
            recipe=recipe.model_copy(update={"select": "last", "recorded_steps": 1}),
            out=folder / "float.checkpoint",
            resume=resume,
            progress=lambda share, note: tell("train", share, note),
            observer=statistics,
        ).summary
        if trained.dev_accuracy is None or trained.test_accuracy is None:
            raise SpecError(f"{experiment.name}: the float run diverged; lower the learning rate")
        tell("train", 1.0, f"test accuracy {trained.test_accuracy:.2%}")
        gains = noise_gains(model, torch.from_numpy(data.dev.inputs[:EXAMPLES]))
        tell("gains", 1.0, f"{len(gains.weights)} layers")
        found = Widths(statistics.layers, gains, min(recipe.learning_rate_in(e) for e in range(recipe.epochs)))
        split = data.dev.head(SWEPT_EXAMPLES)
        sweep, least = find_least_bits(model, found, split, tolerance, tell)
        macs = forward_macs(model, layers, torch.from_numpy(data.dev.inputs[:1]))
        assignment = Assignment(
            name=f"{experiment.name}_fixed_point",
            model=model_name,
            data=experiment.data,
            seed=seed,
            updates=trained.steps,
            learning_rate_least=found.learning_rate,
            float_dev_accuracy=trained.dev_accuracy,
            float_test_accuracy=trained.test_accuracy,
            sweep=sweep,
            tolerance=tolerance,
            least_bits=least,
            layers=tuple(found.record(path, layers[path], macs[path], least) for path in macs),
            code=provenance.code_state(),
            data_sha256=data.sha256,
        )
        write_atomically(folder / "assignment.json", dump_json(assignment))
        write_atomically(folder / "plan.yaml", plan_text(assignment))
        for tensors in CLASSES if one_bit_less else ():
            write_atomically(folder / f"plan_less_{tensors}.yaml", plan_text(assignment.one_bit_less(tensors)))
    return assignment


def check_recipe(recipe: Recipe) -> None:
    """Raise SpecError for training that the criteria are not about."""
    if recipe.optimizer != "sgd" or recipe.momentum:
        came = f"sgd with momentum {recipe.momentum}" if recipe.optimizer == "sgd" else recipe.optimizer
        raise SpecError(
            f"training.optimizer: got {came}, expected sgd without momentum: the accumulator's width follows from the "
            "learning rate times the smallest gradient"
        )
    if recipe.micro_batches > 1:
        raise SpecError(f"training.micro_batches: got {recipe.micro_batches}, expected 1 for assign")


class Widths:
    """Grids of all layers from the statistics of a float run."""

    def __init__(self, layers: Mapping[str, LayerStatistics], gains: NoiseGains, learning_rate: float) -> None:
        self.layers, self.gains, self.learning_rate = layers, gains, learning_rate
        for path in gains.sources:
            if not layers[path].weight_gradient_least > 0:
                raise SpecError(
                    f"layer {path!r}: its weight gradient was 0 throughout at a reading, so no step is fine enough; "
                    "does the network learn?"
                )
        self.weight_range = {path: max(0, power_above(layers[path].weight_most)) for path in gains.sources}
        self.offsets = noise_offsets(self._gains_at_equal_width())

    def _gains_at_equal_width(self) -> dict[str, float]:
        """Noise gains times the squared step at B = 1, so that equal widths compare whatever the ranges are."""
        weights = {f"weight {p}": g * 4.0 ** self.weight_range[p] for p, g in self.gains.weights.items()}
        reads = {f"input {p}": g * 4.0 ** with_bits(1, *self._reads(p)).step for p, g in self.gains.activations.items()}
        return weights | reads

    def _reads(self, path: str) -> tuple[int, bool]:
        """Range exponent of what a layer reads, and whether it needs a sign."""
        layer = self.layers[self.gains.sources[path]]
        return power_above(layer.input_most) if layer.input_most > 0 else 0, layer.input_least < 0

    def weight(self, path: str, least: int) -> Grid:
        """Return the grid of a layer's weights for this B_min; a range of 1 unless the weights outgrew it."""
        return with_bits(self.offsets[f"weight {path}"] + least, self.weight_range[path])

    def activation(self, path: str, least: int) -> Grid:
        """Return the grid of what a layer reads for this B_min; the network's own input has its given width."""
        offset = self.offsets.get(f"input {path}")
        return with_bits(INPUT_BITS if offset is None else offset + least, *self._reads(path))

    def forward(self, least: int) -> dict[str, tuple[Grid, Grid]]:
        """Return the grids of a forward pass, by layer."""
        return {path: (self.weight(path, least), self.activation(path, least)) for path in self.gains.sources}

    def record(self, path: str, module: Layer, macs: int, least: int) -> LayerRecord:
        """Return everything about one layer."""
        layer = self.layers[path]
        of_weight = weight_gradient(layer.weight_gradient_most, layer.weight_gradient_least)
        of_output = activation_gradient(layer.activation_gradient_most, of_weight.step, layer.jacobian_norm)
        weight = self.weight(path, least)
        rest = accumulator(weight, of_weight, self.learning_rate)
        return LayerRecord(
            layer=path,
            weights=module.weight.numel(),
            macs=macs,
            weight=GridRecord.of(weight),
            activation=GridRecord.of(self.activation(path, least)),
            weight_gradient=GridRecord.of(of_weight),
            activation_gradient=GridRecord.of(of_output),
            accumulator=None if rest is None else GridRecord.of(rest),
            network_input=path not in self.gains.activations,
            weight_gain=self.gains.weights[path],
            activation_gain=self.gains.activations.get(path),
            weight_gradient_deviation=(layer.weight_gradient_least, layer.weight_gradient_most),
            activation_gradient_deviation=layer.activation_gradient_most,
            jacobian_norm=layer.jacobian_norm,
        )


def find_least_bits(
    model: nn.Module, widths: Widths, split: Split, tolerance: float, tell: Progress
) -> tuple[tuple[SweepPoint, ...], int]:
    """Return the dev accuracy at each B_min, and the smallest from which on it stays within `tolerance` of float.

    Raises SpecError if none does.
    """
    goal = accuracy(model, "float32", split) - tolerance
    points: list[SweepPoint] = []
    for least in range(1, LARGEST_OFFSET + 1):
        grids = widths.forward(least)
        if points and max(grid.bits for pair in grids.values() for grid in pair) > LARGEST_WIDTH:
            break
        points.append(SweepPoint(least_bits=least, dev_accuracy=accuracy(model, forward_plan(grids), split)))
        tell("sweep", least / LARGEST_OFFSET, f"B_min {least}: dev {points[-1].dev_accuracy:.2%}")
    tell("sweep", 1.0, f"float less tolerance: {goal:.2%}")
    enough = [point.least_bits for point in points]
    for point in reversed(points):
        if point.dev_accuracy < goal:
            enough = [bits for bits in enough if bits > point.least_bits]
            break
    if not enough:
        raise SpecError(f"no width up to {LARGEST_WIDTH} bits reaches a dev accuracy of {goal:.2%}; raise --tolerance")
    return tuple(points), enough[0]


def accuracy(model: nn.Module, plan: object, split: Split) -> float:
    """Return the share of examples that the model, read in the plan's formats, puts in the right class."""
    emulation = emulate(model, plan)  # type: ignore[arg-type]
    training = model.training
    model.eval()
    right = 0
    try:
        for start in range(0, len(split), 500):
            targets = torch.from_numpy(split.targets[start : start + 500])
            with emulation.evaluation():
                scores = model(torch.from_numpy(split.inputs[start : start + 500]))
                with emulation.at("loss"):  # the plan's last rule is for what is no layer
                    functional.cross_entropy(scores, targets)
            right += int((scores.argmax(-1) == targets).sum())
    finally:
        model.train(training)
    return right / len(split)


def forward_macs(model: nn.Module, layers: dict[str, Layer], example: Tensor) -> dict[str, int]:
    """Return the multiply-accumulates of one example's forward pass, by layer in the order of their use."""
    found: dict[str, int] = {}

    def count(path: str, module: Layer, read: Tensor, gave: Tensor) -> None:
        outputs = module.weight.shape[0]
        found[path] = gave.numel() // outputs * module.weight.numel()

    with looking_at(layers, count), torch.enable_grad():
        model(example)
    return found
