"""Golden vectors for hardware people: operands and right answers, as `$readmemh` hex and .npz, edge cases first.

A MAC vector is one dot product d = a . b + c of `terms` products in the arithmetic of a MacSpec; a quantizer vector is
one float32 and its code. A test bench reads the codes, runs the design and compares.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np

from hwsim.arithmetic.mac import Fused, MacSpec, parse_mac
from hwsim.arithmetic.named import parse_format
from hwsim.arithmetic.number import BlockScaled, FixedPoint, FloatingPoint, NumberFormat
from hwsim.arithmetic.storage import Cast
from hwsim.errors import SpecError, UnsupportedError
from hwsim.kernels import gemm
from hwsim.kernels.backends import backend
from hwsim.kernels.casts import cast
from hwsim.kernels.codes import encode
from hwsim.kernels.reference.matmul import result_cast

DEFAULT_TERMS = 4


def write_mac_vectors(
    mac: str | MacSpec, n: int, out: str | Path, *, inputs: str | NumberFormat | None = None,
    terms: int | None = None, seed: int = 0,
) -> list[Path]:  # fmt: skip
    """Write `n` dot products of a MAC to the folder `out`; return the files.

    The files are a.hex and b.hex (one vector a line, `terms` codes), c.hex and d.hex (one code a line), vectors.vh
    (sizes as Verilog constants) and vectors.npz (values as floats and codes).

    Args:
        mac: a MacSpec, its text, or the name of real hardware.
        inputs: format of a and b; taken from the MAC where that names one, else float8_e4m3fn.
        terms: products of one vector; by default one fused step, else 4.
        seed: chooses the random vectors that follow the edge cases.

    Raises:
        SpecError: an unknown name or size. UnsupportedError: stochastic rounding, which has no one right answer.
    """
    spec = parse_mac(mac)
    fmt = _input_format(spec, inputs)
    order = spec.order
    if terms is None:
        terms = order.terms * order.groups if isinstance(order, Fused) else DEFAULT_TERMS
    if n < 1 or terms < 1:
        raise SpecError(f"vectors: got n {n} and terms {terms}, expected 1 or more")
    if gemm.is_random(spec):
        raise UnsupportedError(f"vectors: {spec} draws random bits; a vector has one right answer only without")
    start = _start_cast(spec)
    a, b, c = mac_operands(fmt, start, n, terms, seed)
    with backend("reference"):  # the definition itself answers
        d = np.stack([gemm.matmul(a[i : i + 1], b[i][:, None], spec, c[i : i + 1, None])[0] for i in range(n)])[:, 0]
    result = result_cast(spec)
    return _write(
        Path(out), f"MAC {spec}", {"a": (fmt, a), "b": (fmt, b), "c": (start.format, c), "d": (_register(result), d)}
    )


def write_quantizer_vectors(policy: str | Cast, n: int, out: str | Path, *, seed: int = 0) -> list[Path]:
    """Write `n` float32 values (x.hex) and their codes (d.hex) under a cast to the folder `out`; return the files.

    Raises:
        SpecError: an unknown name. UnsupportedError: block formats or stochastic rounding.
    """
    made = Cast.parse(policy)
    if isinstance(made.format, BlockScaled) or made.rounding.stochastic:
        raise UnsupportedError(f"vectors: {made} has no single code for each value")
    x = quantizer_inputs(made, n, seed)
    return _write(
        Path(out), f"quantizer {made}", {"x": (parse_format("float32"), x), "d": (made.format, cast(x, made))}
    )


def mac_operands(
    fmt: NumberFormat, start: Cast, n: int, terms: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a, b (n, terms) and c (n): edge values against each other first, then random codes and random normals."""
    rng = np.random.default_rng(seed)
    a, b = np.zeros((n, terms)), np.zeros((n, terms))
    c = np.zeros(n)
    edges, starts = edge_values(fmt), edge_values(start.format)
    cases = list(product(edges, edges, starts))
    chosen = cases if len(cases) <= n // 2 else [cases[i] for i in np.linspace(0, len(cases) - 1, n // 2).astype(int)]
    for i, (x, y, z) in enumerate(chosen):
        a[i, 0], b[i, 0], c[i] = x, y, z
    done = len(chosen)
    rest = n - done
    spread = np.exp2(rng.integers(-6, 7, (2, rest, terms)))
    a[done:], b[done:] = rng.standard_normal((2, rest, terms)) * spread
    c[done:] = rng.standard_normal(rest) * np.exp2(rng.integers(-8, 9, rest))
    cancel = done + np.arange(0, rest, 4)  # every fourth vector nearly cancels
    if terms > 1:
        a[cancel, 1], b[cancel, 1] = -a[cancel, 0], b[cancel, 0]
    stored = Cast(fmt, overflow="saturate", nan="zero")
    a, b = (np.asarray(cast(v.astype(np.float32), stored)) for v in (a, b))
    return a, b, np.asarray(cast(c, Cast(start.format, overflow="saturate", nan="zero")), np.float64)


def quantizer_inputs(policy: Cast, n: int, seed: int) -> np.ndarray:
    """Return n float32: the edges of the format, each with its float32 neighbours and midpoints, then random ones."""
    rng = np.random.default_rng(seed)
    edges = np.array(edge_values(policy.format), np.float32)
    finite = np.sort(edges[np.isfinite(edges)])
    middles = (finite[1:] / 2 + finite[:-1] / 2).astype(np.float32)
    around = [np.nextafter(v, np.float32(to)) for v in (finite, middles) for to in (-np.inf, np.inf)]
    first = np.concatenate([edges, middles, *around])
    if not policy.format.has_nan:
        first = first[~np.isnan(first)]
    random = rng.standard_normal(n) * np.exp2(rng.integers(-12, 13, n))
    return np.concatenate([first, random.astype(np.float32)])[:n].astype(np.float32)


def edge_values(fmt: NumberFormat) -> list[float]:
    """Return the values of a format at which arithmetic goes wrong first."""
    if isinstance(fmt, FixedPoint):
        values = [0.0, fmt.step, -fmt.step, fmt.largest, fmt.lowest, fmt.largest - fmt.step]
        return [v for v in dict.fromkeys(values) if fmt.lowest <= v <= fmt.largest]
    assert isinstance(fmt, FloatingPoint)
    ulp = 2.0**-fmt.mantissa_bits
    below = fmt.smallest_normal - fmt.smallest_subnormal
    positive = [fmt.smallest_subnormal, below, fmt.smallest_normal, 1.0, 1.0 + ulp, 2.0 - ulp, fmt.largest]
    values = [0.0, *positive]
    if fmt.signed:
        values += [-v for v in positive] + ([-0.0] if fmt.negative_zero else [])
    if fmt.infinities:
        values += [np.inf, -np.inf] if fmt.signed else [np.inf]
    return values + ([np.nan] if fmt.has_nan else [])


def _input_format(spec: MacSpec, inputs: str | NumberFormat | None) -> NumberFormat:
    own = spec.order.inputs if isinstance(spec.order, Fused) else None
    fmt = parse_format(inputs) if inputs is not None else own or parse_format("float8_e4m3fn")
    if isinstance(fmt, BlockScaled):
        raise UnsupportedError(f"vectors: got inputs {fmt}, expected a float or fixed-point format")
    return fmt


def _start_cast(spec: MacSpec) -> Cast:
    """Return the cast of c: the register in which the sum is held."""
    return Cast(_register(result_cast(spec)))


def _register(result: Cast) -> NumberFormat:
    """Return the format whose codes a result is written in: float32 for the shortened sums of FP8 tensor cores."""
    fmt = result.format
    return parse_format("float32") if fmt.name == "e8m13" else fmt


def _write(out: Path, title: str, columns: dict[str, tuple[NumberFormat, np.ndarray]]) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    arrays: dict[str, np.ndarray] = {}
    sizes: list[str] = []
    for name, (fmt, values) in columns.items():
        codes = np.asarray(encode(np.asarray(values), fmt))
        digits = -(-fmt.bits // 4)
        rows = codes.reshape(len(codes), -1)
        text = "\n".join(" ".join(f"{int(code):0{digits}x}" for code in row) for row in rows)
        path = out / f"{name}.hex"
        path.write_text(f"// {title}: {name}, codes of {fmt}, one vector a line\n{text}\n")
        files.append(path)
        arrays |= {name: values, f"{name}_codes": codes}
        sizes.append(f"localparam {name.upper()}_BITS = {fmt.bits}; // {fmt}")
    first = next(iter(columns.values()))[1]
    terms = first.shape[1] if first.ndim > 1 else 1
    header = out / "vectors.vh"
    lines = [f"// {title}", f"localparam VECTORS = {len(first)};", f"localparam TERMS = {terms};", *sizes]
    header.write_text("\n".join(lines) + "\n")
    with (out / "vectors.npz").open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return [*files, header, out / "vectors.npz"]
