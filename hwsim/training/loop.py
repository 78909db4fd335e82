"""Training a network in a plan's arithmetic: epochs, selection by the dev set, checkpoints, recorded steps."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hwsim.data.dataset import Dataset, Split, load
from hwsim.errors import SpecError, UnsupportedError
from hwsim.kernels import backends
from hwsim.spec import from_plain, to_plain
from hwsim.training.augment import augment
from hwsim.training.checkpoint import load_checkpoint, save_checkpoint
from hwsim.training.emulation import Emulation, emulate
from hwsim.training.gradient_buffers import GradientBuffers
from hwsim.training.initial import draw_initial_weights
from hwsim.training.meeting import MicroBatches
from hwsim.training.optimizer import Optimizer
from hwsim.training.plan import PrecisionPlan
from hwsim.training.presets import parse_plan
from hwsim.training.profile import Profile
from hwsim.training.profiler import STEPS, Comparison, Profiler
from hwsim.training.recipe import Recipe
from hwsim.training.recorder import Recorder
from hwsim.training.result import TrainingResult, TrainingSummary
from hwsim.training.shrink import shrink
from hwsim.training.simplify import Simplifier
from hwsim.training.sparse import SparseBackprop
from hwsim.training.sparsity import measure_sparsity
from hwsim.training.trace import build_workload, join_workloads, same_graph, split_workload
from hwsim.workload import Workload
from hwsim.workload_file import load_workload, save_workload

EVALUATION_BATCH = 500
CHECKPOINT_SECONDS = 120.0
PROGRESS_STEPS = 64
AUDIT_STEPS = 64  # how often the auditor watches a step in which nothing new is called
FIRST_LOSSES = 64  # steps whose losses are kept one by one, for a short run to be compared with
SMALL_STEP = 2**28  # products of a network's linear layers in one pass over a batch

Progress = Callable[[float, str], None]
"""Called with the share of training done, and a note such as the epoch's dev accuracy."""


class Observer(Protocol):
    """Looks at each training step between its backward pass and its update, and changes nothing."""

    def watch(self, model: nn.Module, steps: int) -> None:
        """Prepare for a run of so many updates of this network."""

    def look(self, number: int) -> None:
        """Take note of the step of this number (from 0); the gradients stand in the parameters."""

    def tensors(self) -> dict[str, Tensor]:
        """Return all that was noted, to go into a checkpoint."""

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` returned."""

    def leave(self) -> None:
        """Leave the network as it was before `watch`."""


def train(
    model: nn.Module,
    plan: PrecisionPlan | str = "float32",
    data: Dataset | str = "digits",
    sparse: SparseBackprop | None = None,
    seed: int = 0,
    recipe: Recipe | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    initialize: bool = True,
    data_dir: Path | str | None = None,
    profile: bool = False,
    observer: Observer | None = None,
    stop_after: int | None = None,
) -> TrainingResult:
    """Train `model`, in place, in the plan's arithmetic and return what was found.

    Args:
        model: any float32 torch network that maps a batch of inputs to class scores.
        plan: a `PrecisionPlan` or the name of one.
        data: a data set or the name of one.
        sparse: top-k backprop; None is dense.
        seed: decides initial weights, order of examples, dropout, stochastic rounding, random selection.
        recipe: optimizer, batch, epochs; the defaults of `Recipe` unless given.
        out: file for checkpoints, written after every epoch; none are written unless given.
        resume: go on from the checkpoint in `out`, if there is one, to the same bits.
        progress: called now and then with the share done and a note.
        initialize: draw the initial weights from the seed; False goes on from the weights as they are.
        data_dir: folder of the data sets, for `data` by name.
        observer: looks at the gradients of every step; what it notes is part of the checkpoints.
        profile: record at some steps what the numbers do in every layer (docs/profiler.md); changes no result.
        stop_after: end after so many steps of the recipe, each as in the whole run; `resume` goes on from there.

    Raises:
        SpecError: the plan, the data or the network do not fit together.
        UnsupportedError: something the network does cannot be emulated.
    """
    if not isinstance(model, nn.Module):
        hint = f"; hwsim.load_model({model!r}) gives one by name or path" if isinstance(model, str) else ""
        raise SpecError(f"model: got {model!r}, expected a torch network{hint}")
    if stop_after is not None and (not isinstance(stop_after, int) or stop_after < 1):
        raise SpecError(f"stop_after: got {stop_after!r}, expected a whole number >= 1")
    dataset = load(data, data_dir) if isinstance(data, str) else data
    run = _Run(model, parse_plan(plan), dataset, sparse, seed, recipe or Recipe(), out, progress, profile, observer)
    if initialize:
        draw_initial_weights(model, seed, run.recipe.initial)
    with _torch_threads(1 if _is_small(model, run.recipe) else torch.get_num_threads()):
        run.start()
        if resume:
            run.restore()
        return run.finish(stop_after)


@dataclass
class _State:
    """Where a run stands: everything but tensors and recorded steps. Saved with each checkpoint."""

    epoch: int = 0
    position: int = 0  # examples of the epoch's order that are done
    number: int = 0  # training steps begun
    losses: list[float] = field(default_factory=list)  # since the last evaluation
    first_losses: list[float | None] = field(default_factory=list)
    curves: dict[str, list[float | None]] = field(
        default_factory=lambda: {k: [] for k in ("step", "epoch", "train_loss", "dev_accuracy", "test_accuracy")}
    )
    outcome: str = "finished"
    wall_s: float = 0.0
    cpu_s: float = 0.0
    initial_sha256: str = ""
    norm_shares: dict[str, list[float]] = field(default_factory=dict)  # by layer, one per recorded step
    tie_shares: dict[str, list[float]] = field(default_factory=dict)  # the same


class _Run:
    """One call of `train`."""

    def __init__(
        self,
        model: nn.Module,
        plan: PrecisionPlan,
        data: Dataset,
        sparse: SparseBackprop | None,
        seed: int,
        recipe: Recipe,
        out: Path | str | None,
        progress: Progress | None,
        profile: bool = False,
        observer: Observer | None = None,
    ) -> None:
        self.model, self.plan, self.data, self.sparse, self.seed, self.recipe = model, plan, data, sparse, seed, recipe
        self.checkpoint = None if out is None else Path(out)
        self.progress = progress or (lambda share, note: None)
        self.observer = observer
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.train_split = data.train.head(recipe.train_examples)
        self.emulation: Emulation = emulate(model, plan, sparse, seed)
        self.emulation.audit_every = AUDIT_STEPS
        self.state = _State()
        self.workloads: list[Workload] = []
        full = len(self.train_split) // recipe.batch
        if full == 0:
            raise SpecError(
                f"batch: got {recipe.batch}, expected at most the {len(self.train_split)} training examples"
            )
        self.steps_per_epoch = math.ceil(len(self.train_split) / recipe.batch)
        self.to_record = _spread(recipe.recorded_steps, recipe.epochs, self.steps_per_epoch, full)
        self.to_profile = _spread(STEPS, recipe.epochs, self.steps_per_epoch, full) if profile else ()
        self.profile = Profile()
        self.inputs = torch.from_numpy(self.train_split.inputs)
        self.targets = torch.from_numpy(self.train_split.targets)

    def start(self) -> None:
        """Bring the weights into their stored format and note what the run starts from."""
        self.optimizer = Optimizer(self.model, self.plan, self.recipe, self.seed)
        self.optimizer.buffers = self.emulation.step.buffers = GradientBuffers()
        self.state.initial_sha256 = hash_tensors(p for p in self.model.parameters())
        self.simplifier: Simplifier | None = None
        if self.recipe.simplify is not None:
            self.simplifier = Simplifier(self.recipe.simplify, self.sparse, self.model, self.inputs[:2].to(self.device))
        self.emulation.step.simplifier = self.simplifier
        if self.observer is not None:
            self.observer.watch(self.model, self.steps_per_epoch * self.recipe.epochs)
        self.started = self.saved = time.monotonic()
        self.started_cpu = time.process_time()

    def finish(self, stop_after: int | None = None) -> TrainingResult:
        """Train to the end, or until so many steps are made, and sum up."""
        self.last_step = self.steps_per_epoch * self.recipe.epochs if stop_after is None else stop_after
        backends.reset_used()
        state, recipe = self.state, self.recipe
        while state.epoch < recipe.epochs and state.outcome == "finished" and state.number < self.last_step:
            self._epoch()
            if state.position >= len(self.train_split) or state.outcome == "diverged":
                state.epoch, state.position, state.losses = state.epoch + 1, 0, []
            self._save()
        if self.observer is not None:
            self.observer.leave()
        workload = join_workloads(self.workloads)
        summary = self._summary(workload)
        if self.simplifier is not None and state.outcome == "finished":
            workload = self._simplified_steps()
        return TrainingResult(summary, workload)

    def _simplified_steps(self) -> Workload:
        """Return recorded steps of the smaller network that is left: the next steps of its training, in a copy."""
        smaller, recipe = shrink(self.model, self.inputs[:2].to(self.device)), self.recipe
        few = min(recipe.recorded_steps * recipe.batch, len(self.train_split))
        changes = {"simplify": None, "epochs": 1, "train_examples": few, "evaluate_examples": 1}
        short = recipe.model_copy(update=changes)
        run = _Run(smaller, self.plan, self.data, self.sparse, self.seed, short, None, None)
        run.start()
        return run.finish().workload

    # -- one epoch ---------------------------------------------------------------------------------------------------

    def _epoch(self) -> None:
        state, recipe = self.state, self.recipe
        order = torch.from_numpy(np.random.default_rng([self.seed, state.epoch]).permutation(len(self.train_split)))
        rate = recipe.learning_rate_in(state.epoch)
        self.model.train()
        while state.position < len(order) and state.number < self.last_step:
            chosen = order[state.position : state.position + recipe.batch]
            loss = self._step(self.inputs[chosen], self.targets[chosen], rate)
            state.losses.append(loss)
            if state.number < FIRST_LOSSES:
                state.first_losses.append(loss if math.isfinite(loss) else None)
            state.position += len(chosen)
            state.number += 1
            if self.simplifier is not None:
                self.simplifier.hold()
            if not math.isfinite(loss) and not self.optimizer.loss_scale.dynamic:
                state.outcome = "diverged"
                return
            done = state.number - state.epoch * self.steps_per_epoch
            if recipe.evaluates_after(done, self.steps_per_epoch):
                self._evaluate()
            if self.simplifier is not None:  # after the evaluation, as the authors do
                self.simplifier.after_update(state.epoch, done, self.steps_per_epoch, self.optimizer)
            if state.number % PROGRESS_STEPS == 0:
                share = state.number / (self.steps_per_epoch * recipe.epochs)
                self.progress(share, f"epoch {state.epoch + 1} of {recipe.epochs}")
                if time.monotonic() - self.saved > CHECKPOINT_SECONDS:
                    self._save()

    def _step(self, inputs: Tensor, targets: Tensor, rate: float) -> float:
        """Make one update; return the loss."""
        state, emulation, recipe = self.state, self.emulation, self.recipe
        if recipe.augment != "none":
            inputs = augment(inputs, self.seed, state.number)
        inputs, targets = inputs.to(self.device), targets.to(self.device)
        emulation.begin(state.number, state.epoch)
        recorder = self._recorder(len(targets))
        emulation.step.recorder = recorder
        profiler = Profiler(state.number) if state.number in self.to_profile else None
        emulation.step.profiler = self.optimizer.profiler = profiler
        reference = None if profiler is None else self._reference()
        parts = recipe.micro_batches if len(targets) == recipe.batch else 1
        try:
            total = self._backward(emulation, inputs, targets, parts, self.optimizer.loss_scale.factor)
        except UnsupportedError as error:
            raise UnsupportedError(f"{type(self.model).__name__}: {error}") from None
        finally:
            emulation.step.recorder = emulation.step.profiler = None
        if recorder is not None:
            self._note(recorder)
        if self.observer is not None:
            self.observer.look(state.number)
        if profiler is not None and reference is not None:
            comparison, float32 = reference
            factor = self.optimizer.loss_scale.factor  # memorized backprop remembers gradients that carry it
            profiler.gradients(*comparison.run(lambda: self._backward(float32, inputs, targets, parts, factor)))
        self.optimizer.update(rate)
        if profiler is not None:
            self.profile, self.optimizer.profiler = self.profile.and_then(profiler.profile()), None
        return total / (parts if recipe.loss == "mean" else 1)

    def _backward(self, emulation: Emulation, inputs: Tensor, targets: Tensor, parts: int, factor: float) -> float:
        """Run forward and backward under `emulation` with the loss times `factor`; return the sum of the losses."""
        share = torch.tensor(factor / (parts if self.recipe.loss == "mean" else 1), device=self.device)
        pieces = zip(inputs.chunk(parts), targets.chunk(parts), strict=True) if parts > 1 else [(inputs, targets)]
        losses, apart = [], MicroBatches(emulation.parameters() if parts > 1 else ())
        with emulation:  # where a call of torch costs some microseconds more
            for x, y in pieces:
                losses.append(self._loss(self.model(x), y, emulation))
                losses[-1].backward(gradient=share)
                apart.take()
        apart.join()
        return sum(float(loss.detach()) for loss in losses)

    def _reference(self) -> tuple[Comparison, Emulation]:
        """Return what a profiled step needs to be repeated in float32: the model as it is now, and an emulation."""
        emulation = emulate(self.model, "float32", self.sparse, self.seed)
        emulation.begin(self.state.number, self.state.epoch)
        emulation.step.memories = {name: memory.clone() for name, memory in self.emulation.step.memories.items()}
        return Comparison(self.model), emulation

    def _loss(self, scores: Tensor, targets: Tensor, emulation: Emulation) -> Tensor:
        """Return the cross-entropy of scores (..., classes); targets of -1 do not count."""
        with emulation.at("loss"):
            flat = scores.reshape(-1, scores.shape[-1])
            return functional.cross_entropy(flat, targets.reshape(-1), reduction=self.recipe.loss, ignore_index=-1)

    # -- recorded steps ----------------------------------------------------------------------------------------------

    def _recorder(self, batch: int) -> Recorder | None:
        wanted = sum(number <= self.state.number for number in self.to_record)
        if len(self.workloads) >= wanted or batch != self.recipe.batch:
            return None
        return Recorder(self.model, self.state.number, batch)

    def _note(self, recorder: Recorder) -> None:
        """Keep a recorded step if its graph is that of the first one; else the next step is tried."""
        name = f"{type(self.model).__name__.lower()}_{self.data.name}"
        workload = build_workload(name, recorder, self.plan, self.recipe, self.sparse)
        if not self.workloads or same_graph(self.workloads[0], workload):
            self.workloads.append(workload)
            for layer, share in recorder.norm_shares().items():
                self.state.norm_shares.setdefault(layer, []).append(share)
            for layer, share in recorder.tie_shares().items():
                self.state.tie_shares.setdefault(layer, []).append(share)

    # -- evaluation --------------------------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        """Note where training stands; within an epoch the test set is looked at only for a new best dev accuracy."""
        state, curves = self.state, self.state.curves
        dev, dev_loss = self._score("dev")
        ends_epoch = state.number == (state.epoch + 1) * self.steps_per_epoch
        best = all(dev > earlier for earlier in curves["dev_accuracy"] if earlier is not None)
        test, test_loss = self._score("test") if best or ends_epoch else (None, None)
        self.model.train()
        mean = sum(state.losses) / len(state.losses)
        state.losses = []
        curves["step"].append(state.number)
        curves["epoch"].append(state.epoch)
        curves["train_loss"].append(mean if math.isfinite(mean) else None)
        curves["dev_accuracy"].append(dev)
        curves["test_accuracy"].append(test)
        if self.data.measure is None:
            curves.setdefault("dev_loss", []).append(dev_loss)
            curves.setdefault("test_loss", []).append(test_loss)
        if self.simplifier is not None:
            curves.setdefault("average_dimension", []).append(self.simplifier.average_dimension)
        done = state.number / (self.steps_per_epoch * self.recipe.epochs)
        self.progress(done, f"epoch {state.epoch + 1} of {self.recipe.epochs}: dev {dev:.2%}")

    def _score(self, split: Literal["dev", "test"]) -> tuple[float, float | None]:
        """Return how the network does on a split: its accuracy and loss, or what the data set measures instead."""
        limit, measure = self.recipe.evaluate_examples, self.data.measure
        if measure is None:
            return self._accuracy(getattr(self.data, split).head(limit))
        self.model.eval()
        with self.emulation.evaluation():
            return getattr(measure, split)(self._class_scores, limit), None

    def _class_scores(self, inputs: np.ndarray) -> np.ndarray:
        """Return the class scores of some inputs; the caller has entered the evaluation."""
        rows = [inputs[start : start + EVALUATION_BATCH] for start in range(0, len(inputs), EVALUATION_BATCH)]
        return np.concatenate([self.model(torch.from_numpy(part).to(self.device)).cpu().numpy() for part in rows])

    def _accuracy(self, split: Split) -> tuple[float, float | None]:
        """Return the share of targets (those of -1 left out) whose score is the highest, and the mean cross-entropy.

        The loss is a yardstick, in float64 and in nobody's arithmetic; None where it is not finite.
        """
        self.model.eval()
        right = count = 0
        loss = 0.0
        with self.emulation.evaluation():
            for start in range(0, len(split), EVALUATION_BATCH):
                rows = slice(start, start + EVALUATION_BATCH)
                scores = self.model(torch.from_numpy(split.inputs[rows]).to(self.device))
                targets = torch.from_numpy(split.targets[rows]).to(self.device)
                counted = targets >= 0
                right += int(((scores.argmax(-1) == targets) & counted).sum())
                count += int(counted.sum())
                where = split.targets[rows] >= 0
                loss += _cross_entropy(scores.cpu().numpy()[where], split.targets[rows][where])
        loss /= max(1, count)
        return right / max(1, count), loss if math.isfinite(loss) else None

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        """Return every tensor that the run's future depends on, under a name of its own."""
        tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for part in self.optimizer.parameters:
            tensors |= {f"state.{part.path}.{name}": value for name, value in part.states.items()}
        tensors |= self.simplifier.tensors() if self.simplifier else {}
        if self.observer is not None:
            tensors |= {f"observer.{name}": value for name, value in self.observer.tensors().items()}
        return tensors | {f"memory.{name}": value for name, value in self.emulation.step.memories.items()}

    def _identity(self) -> str:
        """Return what a checkpoint must agree with to be gone on from."""
        parts = (
            repr(self.plan),
            repr(self.sparse),
            repr(self.recipe),
            self.seed,
            self.data.sha256,
            bool(self.to_profile),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        self.state.wall_s += time.monotonic() - self.started
        self.state.cpu_s += time.process_time() - self.started_cpu
        self.started = self.saved = time.monotonic()
        self.started_cpu = time.process_time()
        recorded = ""
        if self.workloads:
            recorded = f"{self.checkpoint.name}.step{self.state.number}.json"
            save_workload(join_workloads(self.workloads), self.checkpoint.with_name(recorded))
        scale = self.optimizer.loss_scale
        plain = {
            "identity": self._identity(),
            "state": vars(self.state),
            "updates": self.optimizer.updates,
            "loss_scale": [scale.factor, scale.good],
            "recorded": recorded,
            "magnitudes": self.emulation.step.magnitudes,
            "uncovered": sorted(self.emulation.step.uncovered),
            "profile": to_plain(self.profile) if self.to_profile else None,
        }
        save_checkpoint(self.checkpoint, self._tensors(), plain)
        for old in self.checkpoint.parent.glob(f"{self.checkpoint.name}.step*"):
            if not recorded or not old.name.startswith(recorded.removesuffix(".json")):
                old.unlink(missing_ok=True)

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one. Raises SpecError if it is damaged or of another run."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        tensors, plain = load_checkpoint(self.checkpoint)
        if plain.get("identity") != self._identity():
            raise SpecError(f"{self.checkpoint}: is of a run with other settings; delete it to start anew")
        self.state = _State(**plain["state"])
        self.optimizer.updates = plain["updates"]
        self.optimizer.loss_scale.factor, self.optimizer.loss_scale.good = plain["loss_scale"]
        self.emulation.step.uncovered.update(plain["uncovered"])
        self.emulation.step.magnitudes = plain["magnitudes"]
        if plain.get("profile") is not None:
            self.profile = from_plain(plain["profile"], Profile)
        if plain["recorded"]:
            self.workloads = split_workload(load_workload(self.checkpoint.with_name(plain["recorded"])))
        self.model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
        for part in self.optimizer.parameters:
            for name, value in part.states.items():
                value.copy_(tensors[f"state.{part.path}.{name}"])
        if self.simplifier is not None:
            self.simplifier.restore(tensors)
        if self.observer is not None:
            noted = {n.removeprefix("observer."): t for n, t in tensors.items() if n.startswith("observer.")}
            self.observer.restore(noted)
        memories = {n.removeprefix("memory."): t for n, t in tensors.items() if n.startswith("memory.")}
        self.emulation.step.memories = {name: value.to(self.device) for name, value in memories.items()}

    # -- the end -----------------------------------------------------------------------------------------------------

    def _summary(self, workload: Workload) -> TrainingSummary:
        state, curves = self.state, self.state.curves
        selected = self._selected()
        return TrainingSummary(
            model=type(self.model).__name__,
            data=self.data.name,
            plan=str(self.plan),
            sparse=None if self.sparse is None else str(self.sparse),
            seed=self.seed,
            outcome=self._outcome(),
            test_accuracy=None if selected is None else curves["test_accuracy"][selected],
            dev_accuracy=None if selected is None else curves["dev_accuracy"][selected],
            selected_epoch=None if selected is None else int(curves["epoch"][selected] or 0),
            steps=self.optimizer.updates,
            steps_per_epoch=self.steps_per_epoch,
            curves={name: tuple(values) for name, values in curves.items()},
            first_losses=tuple(state.first_losses),
            wall_s=state.wall_s + time.monotonic() - self.started,
            cpu_s=state.cpu_s + time.process_time() - self.started_cpu,
            backends=backends.used(),
            hashes={
                "data": self.data.sha256,
                "initial_weights": state.initial_sha256,
                "final_weights": hash_tensors(p for p in self.model.parameters()),
            },
            sparsity=measure_sparsity(workload, state.norm_shares, state.tie_shares),
            uncovered=tuple(sorted(self.emulation.step.uncovered | self.emulation.auditor.escaped)),
            measure="accuracy" if self.data.measure is None else self.data.measure.name,
            parameters=sum(p.numel() for p in self.model.parameters()),
            units=self.simplifier.units if self.simplifier else {},
            profile=self.profile if self.to_profile else None,
            average_dimension=curves["average_dimension"][selected]
            if self.simplifier and selected is not None
            else None,
        )

    def _outcome(self) -> Literal["finished", "diverged", "stopped"]:
        if self.state.outcome == "diverged":
            return "diverged"
        return "finished" if self.state.epoch == self.recipe.epochs else "stopped"

    def _selected(self) -> int | None:
        """Return the place in the curves of the evaluation that counts."""
        dev = [value for value in self.state.curves["dev_accuracy"] if value is not None]
        if not dev:
            return None
        return len(dev) - 1 if self.recipe.select == "last" else int(np.argmax(dev))


def _spread(count: int, epochs: int, steps_per_epoch: int, full_steps: int) -> tuple[int, ...]:
    """Return the numbers of the steps to record, the first and the last among them, each on a full batch."""
    last = epochs * steps_per_epoch - 1
    numbers = sorted({round(index * last / max(1, count - 1)) for index in range(count)})
    partial = full_steps < steps_per_epoch
    return tuple(n - 1 if partial and n % steps_per_epoch == full_steps and n > 0 else n for n in numbers)


def _cross_entropy(scores: np.ndarray, targets: np.ndarray) -> float:
    """Return the sum of the cross-entropies of scores (targets, classes), in nats."""
    wide = scores.astype(np.float64)
    with np.errstate(invalid="ignore"):  # a network that diverged
        shifted = wide - wide.max(-1, keepdims=True)
        chosen = np.take_along_axis(shifted, targets[:, None], -1)[:, 0]
        return float((np.log(np.exp(shifted).sum(-1)) - chosen).sum())


def _is_small(model: nn.Module, recipe: Recipe) -> bool:
    """Return whether a step is so short that torch's threads would spend it waiting for each other."""
    products = recipe.batch * sum(p.numel() for p in model.parameters())
    return products < SMALL_STEP and not any(isinstance(m, nn.Conv1d | nn.Conv2d) for m in model.modules())


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Within it, torch computes with this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def hash_tensors(tensors: Iterable[Tensor]) -> str:
    """Return the sha256 over the bytes of tensors, in order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()
