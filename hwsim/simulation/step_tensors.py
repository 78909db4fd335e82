"""The tensors of one step as a machine meets them: how much of each is stored, where it is, what reading it moves.

Top-k changes what is stored: a machine that gathers while it loads never makes the gathered copy (the tensor is
*virtual*: it is read at its source), one that cannot prune stores the pruned gradient at full size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from hwsim.hardware.accelerator import Accelerator
from hwsim.hardware.mapping import ALL
from hwsim.simulation import sparsity
from hwsim.simulation.lowering import Lowering, Stream
from hwsim.simulation.residency import Access, Placement, peak_bytes, place
from hwsim.simulation.sparsity import Kept, Sparsity
from hwsim.workload import Gemm, Op, OpKind, Tensor, Workload

FUSING = (OpKind.GEMM, OpKind.ELEMENTWISE, OpKind.CAST)  # an element-wise op can take their results as they come


class StepTensors:
    """Sizes and places of the tensors of the recorded step with index `step`."""

    def __init__(self, workload: Workload, lowering: Lowering, step: int, sparse: Sparsity) -> None:
        self.workload = workload
        self.machine: Accelerator = lowering.machine
        self.two_levels = lowering.two_levels
        self.step = step
        self.sparse = sparse
        self.shares: dict[str, Fraction] = {}  # of the elements of a tensor that are stored
        self.virtual: dict[str, tuple[str, Kept | None]] = {}  # never stored by itself: its source, how it is gathered
        self.accesses = [self._access(op) for op in workload.ops]
        self.persistent = frozenset(t.id for t in workload.tensors.values() if t.persistent)
        sizes = {tensor: self.size(tensor) for tensor in workload.tensors}
        self.peak_bytes = peak_bytes(self.accesses, sizes, self.persistent)
        capacity = int(self.machine.outermost.resident_kib * 1024)
        self.placements: list[Placement] = place(self.accesses, sizes, self.persistent, capacity)
        self.last_read = {t: index for index, access in enumerate(self.accesses) for t in access.reads}

    # ---- selections

    def kept(self, op: Op) -> Kept | None:
        """What the selection of an op kept in this step; None if there is none or it is not used."""
        if op.selection is None or self.sparse in ("zeros", "dense"):
            return None
        return Kept(self.workload.selections[op.selection], self.step)

    def prunes(self, kept: Kept) -> bool:
        """Whether the machine can leave out what was not kept."""
        return self.sparse == "ideal" or not kept.by_example or sparsity.can_skip_rows(self.machine)

    def gathers(self, kept: Kept) -> bool:
        """Whether gathers and scatters happen while loading and storing."""
        if self.sparse == "ideal":
            return True
        return sparsity.can_skip_rows(self.machine) if kept.by_example else self.machine.can("gather")

    def density(self, tensor: str) -> Fraction:
        """Recorded share of non-zero elements."""
        return sparsity.density(self.workload.tensors[tensor].density, self.step)

    def _access(self, op: Op) -> Access:
        """Tensors that an op moves on this machine; none for a gather or scatter that needs no time of its own."""
        kept = self.kept(op)
        reads = tuple(dict.fromkeys(self.source(tensor) for tensor in op.reads))
        if kept is None:
            if op.kind is OpKind.CAST and op.reads[0] in self.shares:
                self.shares[op.writes[0]] = self.shares[op.reads[0]]
            return Access(reads, op.writes)
        if op.kind is OpKind.SELECT and self.sparse == "ideal":
            return Access((), ())
        if op.kind is OpKind.GATHER:
            self.shares[op.writes[0]] = kept.share if self.prunes(kept) else Fraction(1)
            if self.gathers(kept):
                self.virtual[op.writes[0]] = (reads[0], kept)
                return Access((), ())
        elif op.kind is OpKind.CAST and op.reads[0] in self.shares:
            self.shares[op.writes[0]] = self.shares[op.reads[0]]
        elif op.gemm is Gemm.GRAD_WEIGHT and op.selected_axis == "m" and self.prunes(kept):
            self.shares[op.writes[0]] = kept.touched if kept.by_example else kept.share
        elif op.kind is OpKind.SCATTER and (self.gathers(kept) or not self.prunes(kept)):
            self.shares[op.writes[0]] = self.shares.get(op.reads[0], Fraction(1))
            self.virtual[op.writes[0]] = (op.reads[0], None)  # kept rows are stored where they belong
            return Access((), ())
        return Access(reads, op.writes)

    # ---- sizes and places

    def source(self, tensor: str) -> str:
        """The tensor that is really read."""
        return self.virtual[tensor][0] if tensor in self.virtual else tensor

    def size(self, tensor: str) -> int:
        """Stored bytes of a tensor in this step."""
        return math.ceil(self.workload.tensors[tensor].bytes * self.shares.get(tensor, Fraction(1)))

    def on_chip(self, tensor: str, op: int) -> bool:
        """Whether op number `op` finds a tensor on chip."""
        return self.source(tensor) in self.placements[op].on_chip_reads

    def stays(self, tensor: str, op: int) -> bool:
        """Whether a result needs no store: it stays on chip, or the next op takes it all and nobody else reads it."""
        if tensor in self.placements[op].on_chip_writes:
            return True
        if tensor in self.persistent or not self.fuses(tensor, op):
            return False
        return self.last_read.get(tensor, -1) <= op + 1

    def fuses(self, tensor: str, op: int) -> bool:
        """Whether the next op is element-wise and takes this result of op number `op` as it comes."""
        ops = self.workload.ops
        if not self.machine.vector.fused or op + 1 >= len(ops) or ops[op].kind not in FUSING:
            return False
        following = ops[op + 1]
        same_size = self.workload.tensors[tensor].elements == following.elements
        return following.kind in FUSING[1:] and tensor in following.reads and same_size

    # ---- what moving a tensor takes

    def whole(self, tensor: str, spread: Fraction = Fraction(1)) -> Stream:
        """All bytes of a tensor to or from DRAM; `spread` is moved over useful bytes."""
        size, burst = self.size(tensor), self.machine.dram.burst_bytes
        return Stream(math.ceil(size * spread / burst) * burst, size, size)

    def chip_only(self, tensor: str) -> Stream:
        """All bytes of a tensor that the outermost on-chip memory holds: nothing moves if there is only one."""
        return Stream(0, self.size(tensor) if self.two_levels else 0, 0)

    def reading(self, tensors: Sequence[str], op: int) -> Stream:
        """What op number `op` moves to read these tensors whole."""
        total = Stream()
        for tensor in tensors:
            if self.on_chip(tensor, op):
                total += self.chip_only(tensor)
            else:
                total += self.whole(tensor, self.spread_of(tensor))
        return total

    def writing(self, tensors: Sequence[str], op: int) -> Stream:
        """What op number `op` moves to store these results."""
        total = Stream()
        for tensor in tensors:
            total += self.chip_only(tensor) if self.stays(tensor, op) else self.whole(tensor)
        return total

    def spread_of(self, tensor: str) -> Fraction:
        """Moved over useful bytes of a tensor that is gathered from its source while loading; else 1."""
        source, kept = self.virtual.get(tensor, (tensor, None))
        return ALL if kept is None else self.spread(self.workload.tensors[source], kept)

    def spread(self, tensor: Tensor, kept: Kept) -> Fraction:
        """Bytes of the bursts that kept positions touch in a tensor, over their own bytes."""
        if self.sparse == "ideal":
            return ALL
        run = max(1, tensor.elements // max(1, kept.selection.rows * kept.selection.extent))
        return kept.scattering(int(tensor.format.bits_per_element), self.machine.dram.burst_bytes, run)
