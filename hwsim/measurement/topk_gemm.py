"""The backward pass of a linear layer with top-k: whole, in parts, fused, and its rivals, on the real machine.

weight (out, in), x (batch, in), g = dL/dy (batch, out). Over the batch ("unified"): one set S of kept columns of g
for all rows,
dx = g[:, S] weight[S], dw[S] = g[:, S]^T x and zero elsewhere. Per example: every row keeps its own positions.
What is timed (`operation`):
  backward              dense: both GEMMs · torch: select, gather, two reduced GEMMs, zero-fill and scatter · triton:
  fused
                        selection, GEMMs that gather while they load, zero-fill and rows of dw written in place
  backward_with_zeros   dense GEMMs on a g whose unkept columns are 0: what masking without compaction costs
  select_batch gather grad_input grad_weight scatter     the parts
  select_example grad_input_example grad_weight_example  the same for top-k per example
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from hwsim.measurement.cases import Case
from hwsim.measurement.prepared import (
    TOLERANCE,
    Prepared,
    UnavailableError,
    check_product,
    element_bytes,
    generator,
    normal,
    set_precision,
    stored,
)
from hwsim.measurement.record import Check


@dataclass
class Layer:
    """The tensors of one layer's backward pass, with results to write into."""

    g: torch.Tensor
    weight: torch.Tensor
    x: torch.Tensor
    dx: torch.Tensor
    dw: torch.Tensor


def prepare(case: Case, device: torch.device) -> Prepared:
    """Make a `topk_backward` case ready on `device`."""
    set_precision(case.dtype)
    source = generator(case.id, device)
    batch, out, inputs = case["batch"], case["out"], case["inputs"]
    layer = Layer(
        g=normal((batch, out), case.dtype, source),
        weight=normal((out, inputs), case.dtype, source),
        x=normal((batch, inputs), case.dtype, source),
        dx=torch.empty((batch, inputs), dtype=stored(case.dtype), device=device),
        dw=torch.empty((out, inputs), dtype=stored(case.dtype), device=device),
    )
    if case.operation == "grad_input_2to4":
        return _two_of_four(case, layer)
    if case.kernel == "dense":
        return _dense(case, layer)
    if case.operation.endswith("_example"):
        return _example(case, layer)
    return _unified(case, layer)


def reference_select(g: torch.Tensor, kept: int) -> torch.Tensor:
    """Positions of the `kept` largest float64 sums of |g| over the rows, ties to the lowest position, ascending
    (int32)."""
    scores = g.double().abs().sum(0)
    order = torch.sort(scores, descending=True, stable=True).indices[:kept]
    return torch.sort(order[scores[order] > 0]).values.int()


def torch_select(g: torch.Tensor, kept: int) -> torch.Tensor:
    """The library's way: |g| summed over the rows in float32, topk, positions sorted (int64). Ties fall as topk lets
    them."""
    scores = g.abs().sum(0, dtype=torch.float32)
    return torch.sort(torch.topk(scores, kept, sorted=False).indices).values


def _dense(case: Case, layer: Layer) -> Prepared:
    """Both dense GEMMs; with zeros in three of four columns for `backward_with_zeros`."""
    batch, out, inputs = case["batch"], case["out"], case["inputs"]
    if case.operation == "backward_with_zeros":
        zeroed = torch.arange(out, device=layer.g.device) % 4 != 0
        layer.g[:, zeroed] = 0

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        torch.mm(layer.g, layer.weight, out=layer.dx)
        torch.mm(layer.g.t(), layer.x, out=layer.dw)
        return layer.dx, layer.dw

    size = element_bytes(case.dtype)
    flops = 4 * batch * out * inputs
    traffic = (2 * batch * out + out * inputs + batch * inputs + batch * inputs + out * inputs) * size
    return Prepared(call, _check_backward(case, layer, call, None), flops, traffic)


def _unified(case: Case, layer: Layer) -> Prepared:
    """Top-k over the batch: the whole backward pass, or one part of it."""
    kept, size = case["kept"], element_bytes(case.dtype)
    batch, out, inputs = case["batch"], case["out"], case["inputs"]
    device = layer.g.device
    index = reference_select(layer.g, kept)
    if len(index) != kept:
        raise UnavailableError(f"only {len(index)} columns are not zero, {kept} wanted")
    wide_index = index.long()
    g_kept, weight_kept = layer.g[:, wide_index].contiguous(), layer.weight[wide_index].contiguous()
    rows = torch.empty((kept, inputs), dtype=stored(case.dtype), device=device)
    scratch = {}
    if case.kernel == "triton":
        from hwsim.measurement.triton_topk import select_over_batch, selection_scratch

        scratch = selection_scratch(batch, out, kept, device)
    if case.kernel.startswith("triton"):
        from hwsim.measurement.triton_gemm import gemm
    tf32 = case.dtype == "tf32"
    small_flops = 2 * batch * kept * inputs
    select_bytes, gather_bytes = batch * out * size, 2 * (batch + inputs) * kept * size
    input_bytes = (batch * kept + kept * inputs + batch * inputs) * size
    weight_bytes = (batch * kept + batch * inputs + kept * inputs) * size

    if case.operation == "backward":

        def by_torch() -> tuple[torch.Tensor, torch.Tensor]:
            chosen = torch_select(layer.g, kept)
            p = layer.g.index_select(1, chosen)
            torch.mm(p, layer.weight.index_select(0, chosen), out=layer.dx)
            torch.mm(p.t(), layer.x, out=rows)
            layer.dw.zero_().index_copy_(0, chosen, rows)
            return layer.dx, layer.dw

        def by_triton() -> tuple[torch.Tensor, torch.Tensor]:
            chosen = select_over_batch(layer.g, kept, scratch)
            gemm(layer.g, layer.weight, layer.dx, tf32, gather_k=chosen)
            layer.dw.zero_()
            gemm(layer.g.t(), layer.x, layer.dw, tf32, gather_m=chosen, scatter_m=True)
            return layer.dx, layer.dw

        whole = by_torch if case.kernel == "torch" else by_triton
        traffic = select_bytes + input_bytes + weight_bytes + out * inputs * size
        launches = 4 if case.kernel == "triton" else 0
        return Prepared(whole, _check_backward(case, layer, whole, wide_index), 2 * small_flops, traffic, launches)

    if case.operation == "select_batch":
        if case.kernel == "torch":
            select: Callable[[], torch.Tensor] = lambda: torch_select(layer.g, kept)  # noqa: E731
        else:
            select = lambda: select_over_batch(layer.g, kept, scratch)  # noqa: E731
        launches = 1 if case.kernel == "triton" else 0
        return Prepared(select, _check_selection(layer.g, index, select), 2 * batch * out, select_bytes, launches)

    if case.operation == "gather":

        def gather() -> tuple[torch.Tensor, torch.Tensor]:
            return layer.g.index_select(1, wide_index), layer.weight.index_select(0, wide_index)

        def check_gather() -> Check:
            p, w = gather()
            same = bool(torch.equal(p, g_kept)) and bool(torch.equal(w, weight_kept))
            return Check("indexing", 0.0 if same else 1.0, 0.0, p.numel() + w.numel())

        return Prepared(gather, check_gather, 0, gather_bytes, launches=2)

    if case.operation == "scatter":
        rows.copy_(normal((kept, inputs), case.dtype, generator(case.id, device)))

        def check_scatter() -> Check:
            layer.dw.fill_(float("nan"))
            layer.dw.zero_().index_copy_(0, wide_index, rows)
            expected = torch.zeros_like(layer.dw)
            expected[wide_index] = rows
            return Check("indexing", 0.0 if torch.equal(layer.dw, expected) else 1.0, 0.0, expected.numel())

        return Prepared(
            lambda: layer.dw.zero_().index_copy_(0, wide_index, rows),
            check_scatter,
            0,
            (out * inputs + 2 * kept * inputs) * size,
            launches=2,
        )

    call: Callable[[], object]
    if case.operation == "grad_input":
        a, b, result, traffic = g_kept, weight_kept, layer.dx, input_bytes
        call = lambda: torch.mm(g_kept, weight_kept, out=layer.dx)  # noqa: E731
        if case.kernel == "triton_gather":
            call = lambda: gemm(layer.g, layer.weight, layer.dx, tf32, gather_k=index)  # noqa: E731
    elif case.operation == "grad_weight":
        a, b, result, traffic = g_kept.t(), layer.x, rows, weight_bytes
        call = lambda: torch.mm(g_kept.t(), layer.x, out=rows)  # noqa: E731
        if case.kernel == "triton_gather":
            call = lambda: gemm(layer.g.t(), layer.x, rows, tf32, gather_m=index)  # noqa: E731
    else:
        raise UnavailableError(f"no such operation: {case.operation}")

    def check_gemm() -> Check:
        result.fill_(float("nan"))
        call()
        return check_product(result, a, b, case.dtype)

    return Prepared(call, check_gemm, small_flops, traffic, launches=1 if case.kernel == "triton_gather" else 0)


def _check_backward(
    case: Case, layer: Layer, call: Callable[[], object], kept: torch.Tensor | None
) -> Callable[[], Check]:
    """Compare both results of a whole backward pass with float64 products over the kept columns (None: all)."""

    def check() -> Check:
        layer.dx.fill_(float("nan"))
        layer.dw.fill_(float("nan"))
        call()
        g, weight = (layer.g, layer.weight) if kept is None else (layer.g[:, kept], layer.weight[kept])
        first = check_product(layer.dx, g, weight, case.dtype)
        second = check_product(layer.dw, layer.g.t(), layer.x, case.dtype, rows=kept)
        error = max(first.error, second.error) if first.passed and second.passed else float("nan")
        return Check(first.against, error, TOLERANCE[case.dtype], first.compared + second.compared)

    return check


def _check_selection(g: torch.Tensor, index: torch.Tensor, select: Callable[[], torch.Tensor]) -> Callable[[], Check]:
    """The kept scores must be the largest ones: equal sums, so float32 near-ties may fall either way."""

    def check() -> Check:
        chosen = select().long()
        scores = g.double().abs().sum(0)
        distinct = len(torch.unique(chosen)) == len(index)
        best, got = scores[index.long()].sum(), scores[chosen].sum()
        error = float((best - got) / best) if distinct else float("nan")
        return Check("float64 scores: share of the best total score that was missed", error, 1e-6, len(index))

    return check


def _example(case: Case, layer: Layer) -> Prepared:
    """Top-k per example: selection, and both products by gathered rows, masked dense GEMMs or torch's sparse
    product."""
    kept, size = case["kept"], element_bytes(case.dtype)
    batch, out, inputs = case["batch"], case["out"], case["inputs"]
    device = layer.g.device
    order = torch.sort(layer.g.double().abs(), dim=1, descending=True, stable=True).indices[:, :kept]
    index = torch.sort(order, dim=1).values.int().contiguous()
    values = torch.gather(layer.g, 1, index.long()).contiguous()
    masked = torch.zeros_like(layer.g).scatter_(1, index.long(), values)
    flops = 2 * batch * kept * inputs
    pair_bytes = batch * kept * (size + 4)

    if case.operation == "select_example":
        found, found_values = torch.empty_like(index), torch.empty_like(values)

        def by_torch() -> None:
            chosen = torch.sort(torch.topk(layer.g.abs(), kept, dim=1, sorted=False).indices, dim=1).values
            found_values.copy_(torch.gather(layer.g, 1, chosen))
            found.copy_(chosen)

        def by_triton() -> None:
            from hwsim.measurement.triton_topk import select_rows

            select_rows(layer.g, kept, found, found_values)

        select = by_torch if case.kernel == "torch" else by_triton

        def check_selection() -> Check:
            found.fill_(-1)
            select()
            best, got = values.double().abs().sum(1), found_values.double().abs().sum(1)
            error = float(((best - got).abs() / best).max())
            right = bool(((found >= 0) & (found < out)).all()) and torch.equal(
                torch.gather(layer.g, 1, found.long().clamp(0, out - 1)), found_values
            )
            return Check("float64 magnitudes of every row", error if right else float("nan"), 1e-12, found.numel())

        traffic = batch * out * size + pair_bytes
        return Prepared(select, check_selection, batch * out, traffic, launches=1 if case.kernel == "triton" else 0)

    to_input = case.operation == "grad_input_example"
    # float32 sums by atomic adds need a float32 result
    dw = torch.empty((out, inputs), dtype=torch.float32, device=device) if case.kernel == "triton_rows" else layer.dw
    result = layer.dx if to_input else dw
    graph = True
    if case.kernel == "triton_rows":
        from hwsim.measurement.triton_topk import rows_grad_input, rows_grad_weight

        if to_input:
            call: Callable[[], object] = lambda: rows_grad_input(index, values, layer.weight, result)  # noqa: E731
        else:
            call = lambda: rows_grad_weight(index, values, layer.x, result)  # noqa: E731
    elif case.kernel == "masked_dense":
        if to_input:
            call = lambda: torch.mm(masked, layer.weight, out=result)  # noqa: E731
        else:
            call = lambda: torch.mm(masked.t(), layer.x, out=result)  # noqa: E731
    else:
        graph = False
        rows = masked.to_sparse_csr() if to_input else masked.t().contiguous().to_sparse_csr()
        right = layer.weight if to_input else layer.x
        call = lambda: result.copy_(rows @ right)  # noqa: E731
    result_bytes = result.numel() * result.element_size()
    read = (
        kept * inputs * size * batch
        if to_input and case.kernel == "triton_rows"
        else right_bytes(layer, to_input, size)
    )

    def check() -> Check:
        result.fill_(float("nan"))
        call()
        a, b = (masked, layer.weight) if to_input else (masked.t(), layer.x)
        return check_product(result, a, b, case.dtype)

    launches = {"triton_rows": 1 if to_input else 2}.get(case.kernel, 0)
    return Prepared(
        call, check, flops, pair_bytes + min(read, right_bytes(layer, to_input, size)) + result_bytes, launches, graph
    )


def right_bytes(layer: Layer, to_input: bool, size: int) -> int:
    """Bytes of the dense operand: the weight for grad_input, the input for grad_weight."""
    return (layer.weight if to_input else layer.x).numel() * size


def _two_of_four(case: Case, layer: Layer) -> Prepared:
    """dx with g in the 2:4 pattern (the two largest of every four), by the sparse matrix unit; compression not
    timed."""
    batch, out, inputs = case["batch"], case["out"], case["inputs"]
    groups = layer.g.view(batch, out // 4, 4)
    keep = torch.zeros_like(groups, dtype=torch.bool).scatter_(
        2, torch.topk(groups.abs().float(), 2, dim=2).indices, True
    )
    pruned = (groups * keep).view(batch, out)
    try:
        from torch.sparse import to_sparse_semi_structured

        compressed = to_sparse_semi_structured(pruned)
    except (ImportError, RuntimeError, NotImplementedError, ValueError) as error:
        raise UnavailableError(f"2:4 sparsity: {str(error).splitlines()[0]}") from None

    def check() -> Check:
        return check_product(torch.mm(compressed, layer.weight), pruned, layer.weight, case.dtype)

    size = element_bytes(case.dtype)
    traffic = (batch * out // 2 + out * inputs + batch * inputs) * size + batch * out // 8
    return Prepared(lambda: torch.mm(compressed, layer.weight), check, batch * out * inputs, traffic)
