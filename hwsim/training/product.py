"""Bare matrix products in a user's forward: matmul, bmm, addmm, einsum and their kin.

A product's first operand has the role `input`, and so has the second unless it is a parameter, whose role is `weight`.
The gradient of the first operand is the GEMM `grad_input`, that of the second `grad_weight` (the other way round where
only the first is a parameter).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from hwsim.errors import UnsupportedError
from hwsim.training.elementwise import computed
from hwsim.training.gemm import multiply, read, read_along, store
from hwsim.training.linear import refuse_double_backward
from hwsim.training.step import Site


@dataclass(frozen=True, slots=True)
class Roles:
    """What the operands of a product are, and which GEMM makes each one's gradient."""

    a: str
    b: str
    grad_a: str
    grad_b: str

    @classmethod
    def of(cls, a: Tensor, b: Tensor) -> Roles:
        """Return the roles of two operands."""
        if isinstance(a, nn.Parameter) and not isinstance(b, nn.Parameter):
            return cls("weight", "input", "grad_weight", "grad_input")
        return cls("input", "weight" if isinstance(b, nn.Parameter) else "input", "grad_input", "grad_weight")


class Product(torch.autograd.Function):
    """a @ b for (..., m, k) and (..., k, n) with equal leading axes."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, roles: Roles, site: Site) -> Tensor:
        """Compute the output GEMM."""
        ctx.save_for_backward(a, b)
        ctx.site, ctx.roles, ctx.recorder = site, roles, site.step.recorder
        left, right = read(a, site, roles.a, "output"), read_along(b, -2, site, roles.b, "output")
        return store(
            multiply(left, right, site, "output", roles=(roles.a, roles.b)),
            site,
            "activation",
            "output",
            site.precision.mac("output"),
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of both operands, each from the stored tensors."""
        refuse_double_backward()
        site, roles = ctx.site, ctx.roles
        (a, b), g = ctx.saved_tensors, gradients[0].contiguous()
        if ctx.recorder is not None:
            ctx.recorder.backward(site, g, None, (ctx.needs_input_grad[0], ctx.needs_input_grad[1], False))
        a_gradient = b_gradient = None
        if ctx.needs_input_grad[0]:
            gemm = roles.grad_a
            left, right = read(g, site, "gradient", gemm), read_along(b, -1, site, roles.b, gemm)
            a_gradient = _stored(
                multiply(left, right.transpose(-2, -1), site, gemm, roles=("gradient", roles.b)), site, roles.a, gemm
            )
        if ctx.needs_input_grad[1]:
            gemm = roles.grad_b
            left, right = read_along(a, -2, site, roles.a, gemm), read_along(g, -2, site, "gradient", gemm)
            b_gradient = _stored(
                multiply(left.transpose(-2, -1), right, site, gemm, roles=(roles.a, "gradient")), site, roles.b, gemm
            )
        return a_gradient, b_gradient, None, None


def _stored(product: Tensor, site: Site, role: str, gemm: str) -> Tensor:
    stored_role = "weight_gradient" if role == "weight" else "activation_gradient"
    return store(product, site, stored_role, gemm, site.precision.mac(gemm))


def matmul(site: Site, input: Tensor, other: Tensor) -> Tensor:
    """Emulate `torch.matmul`: vectors, matrices and broadcast batches of them."""
    site.step.output_layer = site.layer
    roles = Roles.of(input, other)
    a = input if input.ndim > 1 else input.unsqueeze(0)
    b = other if other.ndim > 1 else other.unsqueeze(1)
    if b.ndim == 2 and a.ndim > 2:  # the rows of all batches are one GEMM
        y = Product.apply(a.reshape(-1, a.shape[-1]), b, roles, site).reshape(*a.shape[:-1], b.shape[1])
    elif a.ndim > 2 or b.ndim > 2:
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        wide, narrow = a.expand(*batch, *a.shape[-2:]), b.expand(*batch, *b.shape[-2:])
        y = Product.apply(wide, narrow, roles, site)
    else:
        y = Product.apply(a, b, roles, site)
    if input.ndim == 1:
        y = y.squeeze(-2)
    if other.ndim == 1:
        y = y.squeeze(-1)
    if site.step.recorder is not None:
        groups = 1 if b.ndim == 2 else prod(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
        m, n, k = prod(a.shape[:-1]) if b.ndim == 2 else a.shape[-2], b.shape[-1], a.shape[-1]
        sizes, stored = (m, n, k), other.ndim > 1 and other.stride(-1) != 1
        site.step.recorder.gemm(site, (input, other, None), y, sizes, groups, weight_transposed=stored)
    return y


def reversed_matmul(site: Site, input: Tensor, other: Tensor) -> Tensor:
    """Emulate `Tensor.__rmatmul__`."""
    return matmul(site, other, input)


def addmm(site: Site, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """Emulate `torch.addmm` and its batched kin: a product, then beta times input added elementwise."""
    product = matmul(site.part("product"), mat1, mat2)

    def add_scaled(base: Tensor, scaled: Tensor) -> Tensor:
        return (base if beta == 1 else beta * base) + (scaled if alpha == 1 else alpha * scaled)

    result: Tensor = computed(site, add_scaled, (input, product), {})
    if site.step.recorder is not None:
        site.step.recorder.function(site, "add", "elementwise", False, (input, product), result)
    return result


def einsum(site: Site, equation: str, *operands: Any) -> Tensor:
    """Emulate `torch.einsum` as products of two operands, taken from left to right.

    Raises UnsupportedError for a diagonal (a letter twice in one operand).
    """
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    terms, result = _parse_equation(equation, [t.ndim for t in operands])
    value, letters = operands[0], terms[0]
    for number, (operand, term) in enumerate(zip(operands[1:], terms[1:], strict=True)):
        later = set(result).union(*terms[number + 2 :]) if number + 2 < len(terms) else set(result)
        part = site if len(operands) == 2 else site.part(str(number))
        value, letters = _contract(part, value, letters, operand, term, later)
    summed = [axis for axis, letter in enumerate(letters) if letter not in result]
    if summed:
        value = computed(site, torch.sum, (value, summed), {})
        letters = "".join(letter for letter in letters if letter in result)
    return value.permute([letters.index(letter) for letter in result])


def _contract(site: Site, a: Tensor, of_a: str, b: Tensor, of_b: str, later: set[str]) -> tuple[Tensor, str]:
    """Return one product over the letters that both have and nobody needs later, and the letters of its axes."""
    sizes = dict(zip(of_a, a.shape, strict=True)) | dict(zip(of_b, b.shape, strict=True))
    both = [letter for letter in of_a if letter in of_b]
    batch, inner = [c for c in both if c in later], [c for c in both if c not in later]
    rows, columns = [c for c in of_a if c not in of_b], [c for c in of_b if c not in of_a]

    def arranged(t: Tensor, of_t: str, groups: tuple[list[str], ...]) -> Tensor:
        axes = [of_t.index(letter) for group in groups for letter in group]
        return t.permute(axes).reshape([prod(sizes[c] for c in group) for group in groups])

    recorder = site.step.recorder
    left, right = arranged(a, of_a, (batch, rows, inner)), arranged(b, of_b, (batch, inner, columns))
    if not batch:
        left, right = left.squeeze(0), right.squeeze(0)
    if recorder is not None:
        recorder.alias(left, (a,))
        recorder.alias(right, (b,))
    product = matmul(site, left, right)
    shaped = product.reshape([sizes[c] for c in (*batch, *rows, *columns)])
    if recorder is not None:
        recorder.alias(shaped, (product,))
    return shaped, "".join((*batch, *rows, *columns))


def _parse_equation(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """Return the letters of each operand and of the result, with an ellipsis spelled out in capital letters."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    spare = [c for c in "ZYXWVUTSRQPONMLKJIHGFEDCBA" if c not in equation]
    widest = max(
        (rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=True) if "..." in t), default=0
    )
    dots = "".join(spare[:widest])
    spelled = [
        term.replace("...", dots[widest - (rank - len(term.replace("...", ""))) :])
        for term, rank in zip(terms, ranks, strict=True)
    ]
    if not arrow:
        letters = sorted(c for c in set("".join(spelled)) - set(dots) if "".join(spelled).count(c) == 1)
        right = "..." + "".join(letters)
    if any(len(set(term)) < len(term) for term in spelled):
        raise UnsupportedError(f"einsum {equation!r}: a letter stands twice in one operand, which is not emulated")
    return spelled, right.replace("...", dots)


def outer(site: Site, input: Tensor, vec2: Tensor) -> Tensor:
    """Emulate `torch.outer`: one product for each element, nothing is summed."""
    return computed(site, torch.mul, (input.unsqueeze(1), vec2.unsqueeze(0)), {})


def bilinear(site: Site, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Emulate `torch.nn.functional.bilinear`."""
    y = einsum(site, "...i,oij,...j->...o", input1, weight, input2)
    return y if bias is None else computed(site, torch.add, (y, bias), {})
