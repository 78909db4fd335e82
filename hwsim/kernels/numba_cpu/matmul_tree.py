"""Sums in a balanced tree (order pairwise) as vector instructions, lanes over columns.

`BLOCK` leaves at a time are added in registers. Whole blocks join by the rule of a binary counter: after the n-th one
the last two subtrees merge as often as 2 divides n, so that those on the stack are always as large as the digits of n
say. The leaves beyond the last block form ever smaller subtrees, and the stack is then added from its end. That is the
tree which splits at the largest power of two below the length.

A leaf is an exact product (or a rounded one), and two leaves make one multiply-add: the plan sees to it that the lanes
hold every product exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils

from hwsim.kernels.numba_cpu.compiled import compiled
from hwsim.kernels.numba_cpu.matmul_steps import Step
from hwsim.kernels.numba_cpu.vector_ir import INT64, Lanes

BLOCK = 8
_LEVELS = 64


class Tree:
    """Emits the sum of one row of products over `vectors` vectors of columns.

    Args:
        sums, rule, product: of the recipe. step, product_step: with the parameters of the sums and of the products.
    """

    def __init__(
        self, b: ir.IRBuilder, lanes: Lanes, vectors: int, sums: str, rule: str, product: str, step: Step,
        product_step: Step,
    ) -> None:  # fmt: skip
        self.b, self.lanes, self.vectors = b, lanes, vectors
        self.sums, self.rule, self.product, self.step, self.product_step = sums, rule, product, step, product_step

    # ------------------------------------------------------------------------------------------ nodes, vector by vector
    def _leaf(self, x: Any, y: Any) -> Any:
        product = self.lanes.mul(x, y)
        return product if self.product == "none" else self.product_step.round(self.product, product)

    def _pair(self, first: tuple[Any, Any], second: tuple[Any, Any]) -> Any:
        if self.product != "none":
            return self._join(self._leaf(*first), self._leaf(*second))
        return self.step.round(self.rule, self.step.sum_product(self.sums, *second, self._leaf(*first)))

    def _join(self, x: Any, y: Any) -> Any:
        total = self.step.sum_two("odd", x, y) if self.sums == "odd" else self.lanes.add(x, y)
        return self.step.round(self.rule, total)

    def _sum(self, leaves: list[tuple[Any, Any]]) -> Any:
        if len(leaves) == 1:
            return self._leaf(*leaves[0])
        if len(leaves) == 2:
            return self._pair(*leaves)
        half = len(leaves) // 2
        return self._join(self._sum(leaves[:half]), self._sum(leaves[half:]))

    def warm(self) -> None:
        """Read every parameter, by emitting a sum that nobody uses (LLVM drops it)."""
        zero = self.lanes.number(0.0)
        self._sum([(zero, zero)] * 4)

    # ------------------------------------------------------------------------------------------------------- the loops
    def emit(self, a: Any, a_k: Any, right: Any, b_k: Any, length: Any, target: Any) -> None:
        """Emit the sum of `length` (at least 1) products, stored at the address `target`.

        Args:
            a, a_k: address and stride of the left operand. right, b_k: of the right one (columns contiguous).
        """
        b = self.b
        slot = INT64(64 * self.vectors)
        array = cgutils.alloca_once(b, ir.ArrayType(ir.IntType(8), 64 * self.vectors * _LEVELS + 64))
        base = b.ptrtoint(array, INT64)
        base = b.and_(b.add(base, INT64(63)), INT64(-64))
        self.warm()
        entry, body = b.block, b.append_basic_block("tree")
        merge, merged, after = (b.append_basic_block(f"tree_{name}") for name in ("merge", "merged", "rest"))
        whole = b.sdiv(length, INT64(BLOCK))
        b.cbranch(b.icmp_signed(">", whole, INT64(0)), body, after)

        b.position_at_end(body)
        number, at, line, top = (b.phi(INT64) for _ in range(4))
        for phi, first in ((number, INT64(0)), (at, a), (line, right), (top, base)):
            phi.add_incoming(first, entry)
        values = self._block(at, a_k, line, b_k, BLOCK)
        following = b.add(number, INT64(1))
        body_end = b.block
        b.branch(merge)

        b.position_at_end(merge)  # while the counter is even
        digits, place = b.phi(INT64), b.phi(INT64)
        held = [b.phi(self.lanes.floats) for _ in values]
        for phi, first in zip((digits, place, *held), (following, top, *values), strict=True):
            phi.add_incoming(first, body_end)
        more = b.append_basic_block("tree_join")
        b.cbranch(b.icmp_signed("==", b.and_(digits, INT64(1)), INT64(0)), more, merged)
        b.position_at_end(more)
        below = b.sub(place, slot)
        joined = [self._join(x, y) for x, y in zip(self._load(below), held, strict=True)]
        for phi, value in zip((digits, place, *held), (b.lshr(digits, INT64(1)), below, *joined), strict=True):
            phi.add_incoming(value, b.block)
        b.branch(merge)

        b.position_at_end(merged)
        self._store(held, place)
        next_top = b.add(place, slot)
        next_at, next_line = b.add(at, b.mul(a_k, INT64(BLOCK))), b.add(line, b.mul(b_k, INT64(BLOCK)))
        for phi, value in ((number, following), (at, next_at), (line, next_line), (top, next_top)):
            phi.add_incoming(value, b.block)
        b.cbranch(b.icmp_signed("<", following, whole), body, after)

        b.position_at_end(after)
        state = [b.phi(INT64) for _ in range(3)]
        for phi, first, last in zip(state, (a, right, base), (next_at, next_line, next_top), strict=True):
            phi.add_incoming(first, entry)
            phi.add_incoming(last, merged)
        size = BLOCK // 2
        while size:
            state = self._rest(size, state, a_k, b_k, length, slot)
            size //= 2
        self._collapse(base, state[2], slot, target)

    def _rest(self, size: int, state: list[Any], a_k: Any, b_k: Any, length: Any, slot: Any) -> list[Any]:
        """Push a subtree of `size` leaves if the length has that digit; return the new addresses."""
        b = self.b
        before, body, after = b.block, b.append_basic_block("tree_some"), b.append_basic_block("tree_next")
        b.cbranch(b.icmp_signed("!=", b.and_(length, INT64(size)), INT64(0)), body, after)
        b.position_at_end(body)
        at, line, top = state
        self._store(self._block(at, a_k, line, b_k, size), top)
        moved = b.add(at, b.mul(a_k, INT64(size))), b.add(line, b.mul(b_k, INT64(size))), b.add(top, slot)
        body_end = b.block
        b.branch(after)
        b.position_at_end(after)
        results = [b.phi(INT64) for _ in state]
        for phi, old, new in zip(results, state, moved, strict=True):
            phi.add_incoming(old, before)
            phi.add_incoming(new, body_end)
        return results

    def _collapse(self, base: Any, top: Any, slot: Any, target: Any) -> None:
        b = self.b
        last = b.sub(top, slot)
        values = self._load(last)
        before, body, after = b.block, b.append_basic_block("tree_end"), b.append_basic_block("tree_done")
        b.cbranch(b.icmp_unsigned(">", last, base), body, after)
        b.position_at_end(body)
        place = b.phi(INT64)
        held = [b.phi(self.lanes.floats) for _ in values]
        for phi, first in zip((place, *held), (last, *values), strict=True):
            phi.add_incoming(first, before)
        below = b.sub(place, slot)
        joined = [self._join(x, y) for x, y in zip(self._load(below), held, strict=True)]
        for phi, value in zip((place, *held), (below, *joined), strict=True):
            phi.add_incoming(value, b.block)
        body_end = b.block
        b.cbranch(b.icmp_unsigned(">", below, base), body, after)
        b.position_at_end(after)
        results = [b.phi(self.lanes.floats) for _ in values]
        for phi, first, value in zip(results, values, joined, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(value, body_end)
        self._store(results, target)

    def _block(self, at: Any, a_k: Any, line: Any, b_k: Any, size: int) -> list[Any]:
        b, lanes = self.b, self.lanes
        factors = [lanes.spread(lanes.load_scalar(b.add(at, b.mul(a_k, INT64(i))))) for i in range(size)]
        lines = [b.add(line, b.mul(b_k, INT64(i))) for i in range(size)]
        return [
            self._sum([(x, lanes.load(b.add(y, INT64(64 * v)))) for x, y in zip(factors, lines, strict=True)])
            for v in range(self.vectors)
        ]

    def _load(self, address: Any) -> list[Any]:
        return [self.lanes.load(self.b.add(address, INT64(64 * v))) for v in range(self.vectors)]

    def _store(self, values: list[Any], address: Any) -> None:
        for v, value in enumerate(values):
            self.lanes.store(value, self.b.add(address, INT64(64 * v)))


@compiled
def restore_zeros(a, b, start, has_start, out):  # type: ignore[no-untyped-def]
    """Give every zero of `out` its sign where the sums forgot it: -0 if all products (and c) are -0, else +0.

    To nearest, a sum is -0 only if both its parts are; no product that is not zero may round to zero.
    """
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            if out[i, j] != 0:
                continue
            negative = not has_start or (start[i, j] == 0 and np.signbit(start[i, j]))
            k = 0
            while negative and k < a.shape[1]:
                x, y = a[i, k], b[k, j]
                negative = (x == 0 or y == 0) and np.signbit(x) != np.signbit(y)
                k += 1
            out[i, j] = -0.0 if negative else 0.0
