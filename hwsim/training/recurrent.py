"""Recurrent layers as what they are made of: one GEMM over all time steps for inputs, one a step for the state.

torch runs each of them as one fused op. Gradients of the recurrent weights, one part for each time step, add
up by `accumulate_grad`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hwsim.errors import UnsupportedError
from hwsim.training.elementwise import computed, dropout
from hwsim.training.linear import linear
from hwsim.training.meeting import shared
from hwsim.training.step import Site

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, Tensor, State], State]


def _lstm_cell(from_input: Tensor, from_state: Tensor, state: State) -> State:
    enter, forget, cell, leave = (from_input + from_state).chunk(4, -1)
    memory = forget.sigmoid() * state[1] + enter.sigmoid() * cell.tanh()
    return leave.sigmoid() * memory.tanh(), memory


def _gru_cell(from_input: Tensor, from_state: Tensor, state: State) -> State:
    reset_x, update_x, new_x = from_input.chunk(3, -1)
    reset_h, update_h, new_h = from_state.chunk(3, -1)
    update = (update_x + update_h).sigmoid()
    new = (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
    return ((1 - update) * new + update * state[0],)


def _tanh_cell(from_input: Tensor, from_state: Tensor, state: State) -> State:
    return ((from_input + from_state).tanh(),)


def _relu_cell(from_input: Tensor, from_state: Tensor, state: State) -> State:
    return ((from_input + from_state).relu(),)


CELLS: dict[str, Cell] = {"lstm": _lstm_cell, "gru": _gru_cell, "rnn_tanh": _tanh_cell, "rnn_relu": _relu_cell}
GATES = {"lstm": 4, "gru": 3}  # side by side in what the GEMMs give; 1 for the plain cells


def layered(name: str) -> Callable[..., Any]:
    """Return the treatment of torch's fused `lstm`, `gru`, `rnn_tanh` or `rnn_relu`."""

    def run(site: Site, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 9:
            raise UnsupportedError(f"layer {site.layer!r}: {name} is called in a way that is not emulated")
        packed = isinstance(args[1], Tensor) and not args[1].is_floating_point()  # batch sizes stand second
        if not packed:
            x, state, weights, has_bias, layers, drop, training, two_ways, batch_first = args
            sizes = None
        else:
            x, sizes, state, weights, has_bias, layers, drop, training, two_ways = args
            batch_first = False
        first = tuple(state) if name == "lstm" else (state,)
        if name == "lstm" and first[0].shape[-1] != first[1].shape[-1]:
            raise UnsupportedError(f"layer {site.layer!r}: lstm with proj_size is not emulated; use a Linear behind it")
        steps = _unpacked(x, sizes) if sizes is not None else None
        rows = steps if steps is not None else (x.transpose(0, 1) if batch_first else x)
        _alias(site, rows, x)
        lengths = None if sizes is None else _lengths(sizes)
        y, last = _stack(
            site, name, rows, first, weights, has_bias, layers, drop if training else 0.0, two_ways, lengths
        )
        whole = y
        if sizes is not None:
            y = _packed(y, sizes)
        elif batch_first:
            y = y.transpose(0, 1)
        _alias(site, y, whole)
        return (y, *last)

    return run


def single(name: str) -> Callable[..., Any]:
    """Return the treatment of one cell call, such as `lstm_cell`."""

    def run(
        site: Site,
        x: Tensor,
        hx: Any,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        state = tuple(hx) if name == "lstm" else (hx,)
        from_input = linear(site.part("input"), x, w_ih, b_ih, GATES.get(name, 1))
        new = _advance(site, name, from_input, state, w_hh, b_hh)
        return new if name == "lstm" else new[0]

    return run


def _stack(
    site: Site, name: str, x: Tensor, first: State, weights: Sequence[Tensor], has_bias: bool, layers: int,
    drop: float, two_ways: bool, lengths: Tensor | None,
) -> tuple[Tensor, State]:  # fmt: skip
    """Run all layers over x (time, batch, features); return the outputs and the last states."""
    ways, per_way = (2 if two_ways else 1), (4 if has_bias else 2)
    last: list[State] = []
    for layer in range(layers):
        outputs = []
        for way in range(ways):
            index = layer * ways + way
            w = weights[index * per_way : (index + 1) * per_way]
            part = site.part(f"l{layer}{'_reverse' if way else ''}")
            start = tuple(s[index] for s in first)
            y, end = _direction(part, name, x, start, w, has_bias, bool(way), lengths)
            outputs.append(y)
            last.append(end)
        x = outputs[0] if ways == 1 else _joined(site.part(f"l{layer}.cat"), torch.cat(outputs, -1), outputs)
        if drop and layer < layers - 1:
            x = dropout(site.part(f"l{layer}.dropout"), x, drop)
    ends = [[end[i] for end in last] for i in range(len(first))]
    joined = (_joined(site.part(f"last{i}"), torch.stack(parts), parts) for i, parts in enumerate(ends))
    return x, tuple(joined)


def _direction(
    site: Site, name: str, x: Tensor, state: State, w: Sequence[Tensor], has_bias: bool, backwards: bool,
    lengths: Tensor | None,
) -> tuple[Tensor, State]:  # fmt: skip
    """Run one layer in one direction."""
    from_input = linear(site.part("input"), x, w[0], w[2] if has_bias else None, GATES.get(name, 1))
    times = range(len(x) - 1, -1, -1) if backwards else range(len(x))
    outputs: list[Tensor] = [x] * len(x)
    steps = from_input.unbind()
    if site.step.recorder is not None:
        site.step.recorder.slices(site.part("steps"), from_input, steps)
    for t in times:
        new = _advance(site, name, steps[t], state, w[1], w[3] if has_bias else None)
        if lengths is not None:  # sequences that are over keep their state
            alive = (t < lengths).unsqueeze(-1).to(x.device)
            kept = tuple(torch.where(alive, n, s) for n, s in zip(new, state, strict=True))
            for after, before in zip(kept, new, strict=True):
                _alias(site, after, before)
            new = kept
        state = new
        outputs[t] = shared(site, new[0])
    return _joined(site.part("stack"), torch.stack(outputs), outputs), state


def _advance(site: Site, name: str, from_input: Tensor, state: State, w: Tensor, b: Tensor | None) -> State:
    """Make one time step."""
    part = site.again("state")
    hidden, weight, bias = shared(part, (state[0], w, b))
    from_state = linear(part, hidden, weight, bias, GATES.get(name, 1))
    new = computed(part, CELLS[name], (from_input, from_state, shared(part, state)), {})
    new = new if isinstance(new, tuple) else (new,)
    if site.step.recorder is not None:
        gates = site.again("gates")
        site.step.recorder.function(gates, name, "elementwise", False, (from_input, from_state, *state[1:]), new)
    return new


def _joined(site: Site, whole: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Return a tensor made by putting parts together, noted as such."""
    if site.step.recorder is not None:
        site.step.recorder.function(site, "stack", "selecting", False, (list(parts),), whole)
    return whole


def _alias(site: Site, view: Tensor, source: Tensor) -> None:
    if site.step.recorder is not None and view is not source:
        site.step.recorder.alias(view, (source,))


def _lengths(sizes: Tensor) -> Tensor:
    """Return the length of each sequence from a packed sequence's batch sizes."""
    return (sizes.unsqueeze(0) > torch.arange(int(sizes[0])).unsqueeze(1)).sum(1)


def _unpacked(data: Tensor, sizes: Tensor) -> Tensor:
    """Return packed data as (time, batch, features), padded with 0."""
    return torch.nn.utils.rnn.pad_sequence(_columns(data, sizes))


def _columns(data: Tensor, sizes: Tensor) -> list[Tensor]:
    starts = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)[:-1]])
    return [data[(starts + j)[sizes > j]] for j in range(int(sizes[0]))]


def _packed(y: Tensor, sizes: Tensor) -> Tensor:
    return torch.cat([y[t, : int(size)] for t, size in enumerate(sizes)])
