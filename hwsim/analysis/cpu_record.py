"""A recorded run of tests/benchmarks/bench_sparse_backward.py: what top-k gained on the processor it ran on."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hwsim.spec import Spec

Count = Annotated[int, Field(ge=1)]


class CpuRow(Spec):
    """One backward pass, dense time over its time."""

    width: Count
    """Inputs and outputs of the layer."""
    rank_over: Literal["example", "batch"]
    share: Annotated[float, Field(gt=0, le=1)]
    """Of the outputs that are kept."""
    dense_ms: Annotated[float, Field(gt=0)]
    topk_ms: Annotated[float, Field(gt=0)]


class CpuRecord(Spec):
    """The content of the file."""

    SCHEMA: ClassVar[str | None] = "sparse_backward/1"

    device: str
    threads: Count
    date: str
    commit: str
    versions: dict[str, str]
    batch: Count
    rows: Annotated[tuple[CpuRow, ...], Field(min_length=1)]

    def curves(self) -> dict[tuple[int, str], list[tuple[int, float]]]:
        """Return, by layer width and scope, (k, dense over top-k) by ascending k."""
        found: dict[tuple[int, str], list[tuple[int, float]]] = {}
        for row in self.rows:
            kept = max(1, round(row.share * row.width))
            found.setdefault((row.width, row.rank_over), []).append((kept, row.dense_ms / row.topk_ms))
        return {key: sorted(curve) for key, curve in found.items()}
