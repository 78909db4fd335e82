"""Activations recomputed instead of kept: less memory at the peak, more work.

The forward ops are cut into segments. Only tensors that cross a boundary are kept; before the backward pass of a
segment reads others, the ops that make them run once more. With about sqrt(n) segments of n ops the peak grows with
sqrt(n) and the forward work at most doubles (Chen et al., "Training Deep Nets with Sublinear Memory Cost",
arXiv 1604.06174).
"""

from __future__ import annotations

from dataclasses import replace
from math import isqrt

from hwsim.errors import SpecError
from hwsim.workload import Op, Phase, Tensor, Workload

AGAIN = ".again"


def recompute_activations(workload: Workload, segments: int | None = None) -> Workload:
    """The same step with activations recomputed; about sqrt(forward ops) segments unless `segments` says otherwise.

    Raises:
        SpecError: fewer than one segment.
    """
    forward = [op for op in workload.ops if op.phase is Phase.FORWARD]
    count = max(1, isqrt(len(forward))) if segments is None else segments
    if count < 1:
        raise SpecError(f"segments: got {segments}, expected 1 or more")
    return _Recompute(workload, forward, count).run()


class _Recompute:
    def __init__(self, workload: Workload, forward: list[Op], count: int) -> None:
        self.workload = workload
        self.tensors: dict[str, Tensor] = dict(workload.tensors)
        size = -(-len(forward) // count)
        self.segments = [forward[start : start + size] for start in range(0, len(forward), size)]
        self.made = {t: number for number, ops in enumerate(self.segments) for op in ops for t in op.writes}
        self.dropped = self._dropped()

    def _dropped(self) -> set[str]:
        """Tensors that are not kept: made and read within one segment, the last segment excepted."""
        crossing = {
            tensor
            for number, ops in enumerate(self.segments)
            for op in ops
            for tensor in op.reads
            if self.made.get(tensor, number) != number
        }
        last = len(self.segments) - 1
        return {
            tensor
            for tensor, number in self.made.items()
            if number != last and tensor not in crossing and not self.tensors[tensor].persistent
        }

    def run(self) -> Workload:
        """The workload with the second runs inserted."""
        ops: list[Op] = []
        done: set[int] = set()
        for op in self.workload.ops:
            if op.phase is not Phase.FORWARD:
                for number in sorted({self.made[t] for t in op.reads if t in self.dropped} - done, reverse=True):
                    ops += self._again(number)
                    done.add(number)
                ops.append(replace(op, reads=tuple(self._renamed(t) for t in op.reads)))
            else:
                ops.append(op)
        used = {t for op in ops for t in (*op.reads, *op.writes)}
        tensors = {name: tensor for name, tensor in self.tensors.items() if name in used}
        source = self.workload
        return Workload(source.name, source.batch, tensors, tuple(ops), source.selections, source.recorded_steps)

    def _again(self, number: int) -> list[Op]:
        """The ops of a segment that make what the backward pass reads, once more."""
        wanted = {
            tensor
            for op in self.workload.ops
            if op.phase is not Phase.FORWARD
            for tensor in op.reads
            if tensor in self.dropped and self.made[tensor] == number
        }
        chosen: list[Op] = []
        for op in reversed(self.segments[number]):
            if wanted & set(op.writes):
                chosen.append(op)
                wanted |= {t for t in op.reads if t in self.dropped}
        return [self._copy(op) for op in reversed(chosen)]

    def _copy(self, op: Op) -> Op:
        writes = []
        for tensor in op.writes:
            if not self.tensors[tensor].persistent:  # running statistics are updated once
                renamed = tensor + AGAIN
                self.tensors[renamed] = replace(self.tensors[tensor], id=renamed)
                writes.append(renamed)
        reads = tuple(self._renamed(t) for t in op.reads)
        return replace(op, id=op.id + AGAIN, phase=Phase.BACKWARD, reads=reads, writes=tuple(writes))

    def _renamed(self, tensor: str) -> str:
        return tensor + AGAIN if tensor in self.dropped else tensor
