"""Emulating an untouched torch module: its forward runs under a mode that hands each function to us.

    emulation = hwsim.emulate(network, plan)
    with emulation:
        loss = cross_entropy(network(inputs), targets)
        loss.backward()

The network is not edited, copied or subclassed. What the functions compute forward is ours, what autograd computes
backward follows from it, so backward needs no mode; it stands inside the `with` so that the auditor watches it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from hwsim.errors import SpecError, UnsupportedError
from hwsim.training.audit import Auditor
from hwsim.training.elementwise import computed, selected, writes_in_place
from hwsim.training.functions import DIFFERENTIABLE_VIEWS, LOSSES, OWN, PASSING, SPLITTING, VIEW_PROPERTIES, treatment
from hwsim.training.meeting import Meetings, shared
from hwsim.training.plan import LayerPrecision, PrecisionPlan, Rule
from hwsim.training.presets import parse_plan
from hwsim.training.recomputing import watched_checkpoints
from hwsim.training.reducing import reduced
from hwsim.training.sparse import SparseBackprop
from hwsim.training.step import Site, Step


def emulate(
    module: nn.Module, plan: PrecisionPlan | str, sparse: SparseBackprop | None = None, seed: int = 0
) -> Emulation:
    """Return the context in which `module`, and what is computed with it, follows the plan.

    Raises:
        SpecError: the plan has a rule that no layer uses (raised when the first forward pass is through).
        UnsupportedError: the module is scripted, compiled or not float32, and why that cannot be emulated.
    """
    refuse_module(module)
    return Emulation(parse_plan(plan), sparse, seed, module)


def emulated(plan: PrecisionPlan | str, sparse: SparseBackprop | None = None, seed: int = 0) -> Emulation:
    """Return the context in which every torch function follows the plan, for losses and code without a module."""
    return Emulation(parse_plan(plan), sparse, seed, None)


@dataclass(frozen=True)
class Place:
    """Where a forward pass stands: the modules entered, how often each path was called, step number, epoch, domain."""

    stack: list[tuple[str, bool]]
    calls: dict[str, int]
    repeats: dict[str, int]
    moment: tuple[int, int, str]


class Emulation:
    """The context that `emulate` and `emulated` return. Each entry is one training step, unless `begin` said so.

    The auditor costs some microseconds per torch operation. `audit=False` leaves it out; with `audit_every` of n it
    watches every n-th entry from its start, and every other one from the first function on that it has not yet watched
    in that layer: a training loop, whose entries are whole steps, loses no new call that way.
    """

    def __init__(self, plan: PrecisionPlan, sparse: SparseBackprop | None, seed: int, module: nn.Module | None) -> None:
        self.module = module
        self.audit = True
        self.audit_every = 1
        self.auditor = Auditor(plan.uncovered)
        self.step = Step(plan, sparse, seed, self.auditor)
        self.step.number = -1
        self.step.meetings = Meetings() if plan.adds_gradients else None
        self._paths = {id(m): path for path, m in module.named_modules()} if module is not None else {}
        self._precisions: dict[str, LayerPrecision] = {}
        self._stack: list[tuple[str, bool]] = [("", False)]  # path, and whether a torch.nn module stands there
        self._calls: dict[str, int] = {}
        self._exits: list[ExitStack] = []
        self._begun = False
        self._checked = False
        self._entries = 0
        self._watching = False
        self._called: set[tuple[str, str, bool]] = set()  # layer, function, with gradients; while the auditor watches
        self._watched: set[tuple[str, str, bool]] = set()  # those that it has watched to the end of an entry

    def begin(self, number: int, epoch: int = 0, domain: str = "train") -> None:
        """Say which training step the next entry belongs to; stochastic rounding draws its bits by it."""
        self.step.number, self.step.epoch, self.step.domain = number, epoch, domain
        self._calls.clear()
        self.step.repeats.clear()
        self.step.weights_read.clear()
        if self.step.meetings is not None:
            self.step.meetings.clear()
        self._begun = True

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run the module's forward in this context."""
        if self.module is None:
            raise SpecError("emulated(plan) has no module to call; use it as a context")
        with self:
            return self.module(*inputs, **named)

    def __enter__(self) -> Emulation:
        refuse_autocast()
        if not self._exits and not self._begun:
            self.begin(self.step.number + 1, self.step.epoch)
        exits = ExitStack()
        del self._stack[1:]
        for register, hook in (
            (nn.modules.module.register_module_forward_pre_hook, self._enter_module),
            (nn.modules.module.register_module_forward_hook, self._leave_module),
        ):
            always = {"always_call": True} if hook == self._leave_module else {}
            exits.callback(register(hook, **always).remove)
        exits.enter_context(watched_checkpoints(self))
        self._exits.append(exits)
        if len(self._exits) == 1 and self.audit:
            if self._entries % self.audit_every == 0:
                self._watch()
            self._entries += 1
        exits.enter_context(_Mode(self))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._exits.pop().close()
        self._begun = False
        if not self._exits:
            if kind is None:
                self._watched |= self._called
            self._called.clear()
            self._watching = False
        if kind is None and not self._checked and self._precisions:
            self._checked = True
            self.step.plan.check(self._precisions)

    @contextmanager
    def evaluation(self) -> Iterator[Emulation]:
        """Within it, forward passes draw random bits of their own domain and train nothing."""
        step, calls, begun = (self.step.number, self.step.epoch, self.step.domain), dict(self._calls), self._begun
        self.begin(step[0], step[1], "evaluate")
        try:
            with torch.no_grad(), self:
                yield self
        finally:
            self.step.number, self.step.epoch, self.step.domain = step
            self._calls, self._begun = calls, begun

    def place_in_step(self) -> Place:
        """Return where the forward pass stands: what `back_at` needs to return there."""
        step = self.step
        moment = (step.number, step.epoch, step.domain)
        return Place(list(self._stack), dict(self._calls), dict(step.repeats), moment)

    @contextmanager
    def back_at(self, place: Place) -> Iterator[None]:
        """Within it, functions run as they did at that place of the step: the same names, the same random bits.

        Nothing is counted, recorded or profiled twice, and what the module's buffers become is forgotten.
        """
        step, now = self.step, self.place_in_step()
        held = (step.meetings, step.profiler, step.recomputing)
        buffers = [] if self.module is None else [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        try:
            with ExitStack() as exits:
                if not self._exits:
                    self._begun = True  # it is the same step still
                    exits.enter_context(self)
                elif not any(isinstance(mode, _Mode) for mode in _get_current_function_mode_stack()):
                    exits.enter_context(_Mode(self))
                self._return_to(place)
                step.meetings, step.profiler, step.recomputing = None, None, True
                if step.recorder is not None:
                    step.recorder.replaying = True
                yield
        finally:  # torch ends such a run by an exception as soon as it has what it wanted
            self._return_to(now)
            step.meetings, step.profiler, step.recomputing = held
            if step.recorder is not None:
                step.recorder.replaying = step.recomputing
            for buffer, before in buffers:
                buffer.data.copy_(before)  # not seen by autograd, which guards what it saved

    def _return_to(self, place: Place) -> None:
        step = self.step
        self._stack[:], self._calls = list(place.stack), dict(place.calls)
        step.repeats.clear()
        step.repeats.update(place.repeats)
        step.number, step.epoch, step.domain = place.moment

    @contextmanager
    def at(self, path: str) -> Iterator[None]:
        """Within it, bare functions belong to this layer path (the training loop's is ``loss``)."""
        self._stack.append((path, True))
        try:
            yield
        finally:
            self._stack.pop()

    def site(self, name: str) -> Site:
        """Return where the function of this name, called now, stands.

        A function that a torch.nn module calls has the module's path; a bare one has its module's path with its own
        name and a number behind it.
        """
        path, is_leaf = self._stack[-1]
        step = self.step
        if not is_leaf:
            bare = f"{path}.{name.strip('_')}" if path else name.strip("_")
            path = f"{bare}_{self._count(bare)}"
        precision = self._precisions.get(path)
        if precision is None:
            precision = self._precisions[path] = step.plan.layer(path)
        return Site(path, self._count(path), precision, step, step.number)

    def place(self, name: str) -> Site:
        """Return a site for what only the recorder sees: no rule need match it, and no other call is renumbered."""
        path = self._stack[-1][0]
        bare = f"{path}.{name.strip('_')}" if path else name.strip("_")
        return Site(bare, self._count(f"view {bare}"), LayerPrecision(bare, Rule()), self.step, self.step.number)

    def called(self, layer: str, name: str) -> None:
        """Take note that a function is about to run: one that was never watched wakes the auditor."""
        call = (layer, name, torch.is_grad_enabled())
        if self._watching:
            self._called.add(call)
        elif self.audit and call not in self._watched:
            self._watch()
            self._called.add(call)

    def _watch(self) -> None:
        self._watching = True
        self._exits[0].enter_context(self.auditor)

    def parameters(self) -> Iterator[tuple[nn.Parameter, Site]]:
        """Yield the module's parameters with the places of their gradients' sums, where the plan says how they add."""
        step = self.step
        if self.module is None or step.meetings is None:
            return
        for path, parameter in self.module.named_parameters():
            yield parameter, Site(path, 0, step.plan.layer(path.rpartition(".")[0]), step, step.number)

    def reader(self) -> Site:
        """Return where a view is taken, by the first rule that matches the module's path (float32 if none does)."""
        path, step = self._stack[-1][0], self.step
        rule = next((rule for rule in step.plan.rules if rule.matches(path)), Rule())
        return Site(f"{path}.view", self._count(f"reader {path}"), LayerPrecision(path, rule), step, step.number)

    def _count(self, key: str) -> int:
        call = self._calls.get(key, 0)
        self._calls[key] = call + 1
        return call

    def _enter_module(self, module: nn.Module, inputs: Any) -> None:
        path = self._paths.get(id(module))
        whole = isinstance(module, nn.MultiheadAttention) or not any(module.children())
        is_leaf = type(module).__module__.startswith("torch.nn.modules") and whole
        if path is None:
            path = type(module).__name__.lower()
        self._stack.append((path, is_leaf))

    def _leave_module(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if len(self._stack) > 1:
            self._stack.pop()


class _Mode(TorchFunctionMode):
    """Hands each torch function of the forward pass to its treatment."""

    def __init__(self, emulation: Emulation) -> None:
        super().__init__()
        self.emulation = emulation

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Treat one function as `functions` says."""
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.OpOverload):  # what a function is made of: the auditor's matter
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        kind = treatment(name)
        if kind == "free":
            if self.emulation.step.meetings is not None and (name in DIFFERENTIABLE_VIEWS or func in VIEW_PROPERTIES):
                args = shared(self.emulation.reader(), args)
            result = func(*args, **kwargs)
            if self.emulation.step.recorder is not None:
                result = self._note_view(name, args, result)
        else:
            result = self._emulate(kind, name, func, args, kwargs)
        return result

    def _emulate(self, kind: str, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        emulation = self.emulation
        site = emulation.site(name)
        emulation.called(site.layer, name)
        if site.step.meetings is not None and not writes_in_place(func, kwargs):
            args, kwargs = shared(site, args), {key: shared(site, value) for key, value in kwargs.items()}
        if kind == "own":
            return OWN[name](site, *args, **kwargs)  # notes itself
        if kind == "selecting" and name.rstrip("_") in PASSING:
            result = func(*args, **kwargs)
        elif kind == "selecting":
            result = selected(site, func, args, kwargs)
        elif kind == "uncovered":
            result = self._uncovered(name, site, func, args, kwargs)
        elif kind == "reducing":
            result = reduced(site, name, func, args, kwargs)
        else:
            result = computed(site, func, args, kwargs)
        if site.step.recorder is not None:
            operands = (*args, *kwargs.values())
            site.step.recorder.function(site, name, kind, name in LOSSES, operands, result)
        return result

    def _note_view(self, name: str, args: tuple[Any, ...], result: Any) -> Any:
        """Note, in a recorded step, what shows a tensor's elements in another shape or in parts."""
        recorder = self.emulation.step.recorder
        assert recorder is not None
        if name not in SPLITTING or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
            recorder.alias(result, args)
            return result
        pieces = list(result) if name == "__iter__" else result
        recorder.slices(self.emulation.place(name), args[0], pieces)
        return iter(pieces) if name == "__iter__" else result

    def _uncovered(self, name: str, site: Site, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        step = site.step
        operands = (*args, *kwargs.values())
        updating = name.startswith("_foreach_")  # lists of gradients or parameters: an optimizer's, or a clip's
        listed = (i for operand in operands if isinstance(operand, list | tuple) and not updating for i in operand)
        if not any(isinstance(a, Tensor) and a.is_floating_point() for a in (*operands, *listed)):
            return func(*args, **kwargs)
        if step.plan.uncovered == "error":
            raise UnsupportedError(
                f"layer {site.layer!r}: torch function {name!r} is not covered by emulation; "
                "set uncovered: float32 in the plan to run it as torch does"
            )
        step.uncovered.add(name)
        with step.auditor.allowed():
            return func(*args, **kwargs)


def refuse_module(module: nn.Module) -> None:
    """Raise UnsupportedError for a module whose functions would not pass through us, with the reason."""
    for path, part in module.named_modules():
        place = f"module {path or type(module).__name__!r}"
        if isinstance(part, torch.jit.ScriptModule):
            raise UnsupportedError(
                f"{place} is scripted: its functions run inside TorchScript, where no mode sees them"
            )
        if type(part).__name__ == "OptimizedModule" or getattr(part, "_compiled_call_impl", None) is not None:
            raise UnsupportedError(f"{place} is compiled: its GEMMs are fused into generated code; pass it uncompiled")
    for path, parameter in module.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            raise UnsupportedError(
                f"parameter {path} is {parameter.dtype}; emulation carries every format in float32: use module.float()"
            )


def refuse_autocast() -> None:
    """Raise UnsupportedError if torch's autocast is on: it would cast operands behind our back."""
    if torch.is_autocast_enabled("cpu") or (torch.cuda.is_available() and torch.is_autocast_enabled("cuda")):
        raise UnsupportedError("autocast is on: formats come from the precision plan; leave torch.autocast out")
