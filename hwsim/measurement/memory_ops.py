"""Operations limited by memory: copies, elementwise work, reductions, casts, transposes, optimizer updates, and
nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from hwsim.measurement.cases import Case
from hwsim.measurement.prepared import (
    Prepared,
    UnavailableError,
    check_close,
    check_equal,
    element_bytes,
    generator,
    normal,
    stored,
)
from hwsim.measurement.record import Check

COLUMNS = 1024  # of matrices made from n elements


def prepare_launch(case: Case, device: torch.device) -> Prepared:
    """The least a call can be: one element written. Its cold time is the cost that every measured time contains."""
    target = torch.zeros(1, dtype=torch.uint8, device=device)

    def check() -> Check:
        target.zero_()
        target.fill_(7)
        return check_equal(target.cpu(), torch.tensor([7], dtype=torch.uint8), "the value written")

    return Prepared(lambda: target.fill_(7), check, 0, 1, launches=1)


def prepare(case: Case, device: torch.device) -> Prepared:
    """Make a `memory` case of n elements ready."""
    n = case["n"]
    source = generator(case.id, device)
    size = element_bytes(case.dtype)
    if case.operation == "copy":
        x = torch.randint(0, 256, (n,), dtype=torch.uint8, generator=source, device=device)
        result = torch.empty_like(x)
        return Prepared(lambda: result.copy_(x), _exact(result, lambda: result.copy_(x), x, "the source"), 0, 2 * n, 1)
    x = normal((n // COLUMNS, COLUMNS), case.dtype, source)
    if case.operation == "fill":
        return Prepared(
            lambda: x.fill_(0.5), _exact(x, lambda: x.fill_(0.5), torch.full_like(x, 0.5), "the value"), 0, n * size, 1
        )
    if case.operation == "add":
        y, result = normal(tuple(x.shape), case.dtype, source), torch.empty_like(x)
        call: Callable[[], object] = lambda: torch.add(x, y, out=result)  # noqa: E731
        reference = (x.double() + y.double()).to(x.dtype)
        return Prepared(call, _close(result, call, reference, case.dtype, "a float64 sum"), n, 3 * n * size, 1)
    if case.operation == "relu_grad":
        y, result = normal(tuple(x.shape), case.dtype, source), torch.empty_like(x)
        call = lambda: torch.ops.aten.threshold_backward.grad_input(x, y, 0, grad_input=result)  # noqa: E731
        reference = torch.where(y > 0, x, torch.zeros_like(x))
        return Prepared(call, _exact(result, call, reference, "torch.where"), n, 3 * n * size, 1)
    if case.operation == "column_sum":
        total = torch.empty(COLUMNS, dtype=torch.float32, device=device)
        call = lambda: torch.sum(x, 0, dtype=torch.float32, out=total)  # noqa: E731
        return Prepared(
            call, _close(total, call, x.double().sum(0), "float16", "float64 sums"), n, n * size + COLUMNS * 4
        )
    if case.operation == "transpose":
        result = torch.empty((COLUMNS, n // COLUMNS), dtype=x.dtype, device=device)
        call = lambda: result.copy_(x.t())  # noqa: E731
        return Prepared(call, _exact(result, call, x.t(), "the transposed view"), 0, 2 * n * size, 1)
    if case.operation.startswith("cast_"):
        target = case.operation.removeprefix("cast_")
        result = torch.empty(tuple(x.shape), dtype=stored(target), device=device)
        call = lambda: result.copy_(x)  # noqa: E731
        wide, rounded = x.float(), torch.empty(0)

        def check() -> Check:
            result.copy_(torch.zeros_like(x))
            call()
            nonlocal rounded
            rounded = result.float()
            # A value stored in p significant bits is off by at most 2^-p of itself (and half the smallest subnormal).
            bits, tiny = (4, 2.0**-10) if target == "float8_e4m3fn" else (8, 2.0**-134)
            off = ((rounded - wide).abs() > wide.abs() * 2.0**-bits + tiny).sum()
            return Check("half a step of the target format", float(off) / n, 0.0, n)

        return Prepared(call, check, n, n * (size + result.element_size()), 1)
    raise UnavailableError(f"no such operation: {case.operation}")


def prepare_optimizer(case: Case, device: torch.device) -> Prepared:
    """Make an `optimizer` case ready: a float32 weight (out, in) with Adam's two states, or plain SGD."""
    out, inputs = case["out"], case["inputs"]
    source = generator(case.id, device)
    weight, gradient = normal((out, inputs), "float32", source), normal((out, inputs), "float32", source)
    first, second = 0.1 * normal((out, inputs), "float32", source), normal((out, inputs), "float32", source).square()
    step = 10
    if case.operation == "sgd":
        call: Callable[[], object] = lambda: weight.add_(gradient, alpha=-1e-3)  # noqa: E731
        return Prepared(
            call,
            _update_check(call, [weight], lambda: [weight.double() - 1e-3 * gradient.double()]),
            2 * out * inputs,
            12 * out * inputs,
            1,
        )
    rows = None
    if case.operation == "adam_rows":
        order = torch.randperm(out, generator=source, device=device)[: case["kept"]]
        rows = torch.sort(order).values.int()
        gradient = gradient[rows.long()].contiguous()
    if case.kernel == "torch_fused":
        count = torch.tensor(float(step), device=device)
        call = lambda: torch._fused_adam_(  # noqa: E731
            [weight],
            [gradient],
            [first],
            [second],
            [],
            [count],
            lr=1e-3,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )
    else:
        from hwsim.measurement.triton_topk import adam

        call = lambda: adam(weight, gradient, first, second, step, rows)  # noqa: E731

    def expected() -> list[torch.Tensor]:
        return adam_reference(weight, gradient, first, second, step, rows)

    lines = gradient.numel()
    traffic = 7 * 4 * lines + (0 if rows is None else 4 * len(rows))  # read w m v g, write w m v
    return Prepared(call, _update_check(call, [weight, first, second], expected), 12 * lines, traffic, 1)


def adam_reference(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    step: int,
    rows: torch.Tensor | None,
) -> list[torch.Tensor]:
    """One Adam step in float64 with torch's defaults: new weight, first and second moment; only `rows` move if
    given."""
    place = slice(None) if rows is None else rows.long()
    w, m, v, g = weight.double(), first.double(), second.double(), gradient.double()
    m[place] = 0.9 * m[place] + 0.1 * g
    v[place] = 0.999 * v[place] + 0.001 * g * g
    w[place] -= 1e-3 * (m[place] / (1 - 0.9**step)) / ((v[place] / (1 - 0.999**step)).sqrt() + 1e-8)
    return [w, m, v]


def _update_check(
    call: Callable[[], object], state: list[torch.Tensor], expected: Callable[[], list[torch.Tensor]]
) -> Callable[[], Check]:
    """Compare the CHANGE that one call makes with the change of a float64 reference.

    A state of about 1 moves by about 1e-3, so a float32 rounding of the state is up to 1e-4 of the change.
    """

    def check() -> Check:
        before = [tensor.double() for tensor in state]
        wanted = [new - old for new, old in zip(expected(), before, strict=True)]
        call()
        got = [tensor.double() - old for tensor, old in zip(state, before, strict=True)]
        errors = [float((g - w).norm() / w.norm()) for g, w in zip(got, wanted, strict=True)]
        worst = float("nan") if any(map(math.isnan, errors)) else max(errors)
        return Check("change of every state against float64", worst, 1e-3, sum(t.numel() for t in state))

    return check


def _exact(
    result: torch.Tensor, call: Callable[[], object], reference: torch.Tensor, against: str
) -> Callable[[], Check]:
    def check() -> Check:
        result.fill_(3)
        call()
        return check_equal(result, reference, against)

    return check


def _close(
    result: torch.Tensor, call: Callable[[], object], reference: torch.Tensor, dtype: str, against: str
) -> Callable[[], Check]:
    def check() -> Check:
        result.fill_(float("nan"))
        call()
        return check_close(result, reference, dtype, against)

    return check
