"""Measured kernel times, and the same work as the simulator sees it."""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from hwsim.arithmetic.named import parse_format
from hwsim.errors import SpecError
from hwsim.hardware.accelerator import Accelerator
from hwsim.simulation.tiled import TiledWork, convolution_work, gemm_work
from hwsim.validation.study import ConvolutionRows, GemmRows
from hwsim.workload import ConvGeometry, Gemm

TIME_COLUMN = {Gemm.OUTPUT: "fwd_ms", Gemm.GRAD_INPUT: "dgrad_ms", Gemm.GRAD_WEIGHT: "wgrad_ms"}

Row = dict[str, str]


@dataclass(frozen=True)
class Measured:
    """Rows of one table: times in us, the group that each row falls into, and how to build their work."""

    time_us: np.ndarray
    groups: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...]
    extent: np.ndarray  # the largest of m, n and k
    work: Callable[[Accelerator], TiledWork]  # of all rows

    def __len__(self) -> int:
        return len(self.groups)


def data_folder(given: Path | None = None) -> Path:
    """Folder of the measured tables, below HWSIM_DATA unless given.

    Raises:
        SpecError: nothing says where the data are, or they are not there.
    """
    root = given or (Path(os.environ["HWSIM_DATA"]) if os.environ.get("HWSIM_DATA") else None)
    if root is None:
        raise SpecError("validation needs measured data: set HWSIM_DATA to the folder that holds gpu_measured/")
    folder = root / "gpu_measured"
    if not folder.is_dir():
        raise SpecError(f"validation needs measured data: {root} has no folder gpu_measured")
    return folder


def data_hashes(folder: Path) -> dict[str, str]:
    """sha256 of each measured table."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.csv.gz"))}


def read_rows(spec: GemmRows | ConvolutionRows, folder: Path) -> Measured:
    """The rows that `spec` selects.

    Raises:
        SpecError: the table is missing, or no row fits.
    """
    table = "gemm" if isinstance(spec, GemmRows) else "conv"
    chosen = [row for row in _table(folder / f"{table}.csv.gz") if _fits(row, spec.where)]
    measured = _gemms(spec, chosen) if isinstance(spec, GemmRows) else _convolutions(spec, chosen)
    if not len(measured):
        raise SpecError(f"rows {spec.name!r}: no row of {table}.csv.gz has {spec.where}")
    return measured


def _table(path: Path) -> list[Row]:
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as text:
            return list(csv.DictReader(text))
    except OSError as error:
        raise SpecError(f"{path.name}: cannot be read ({error})") from None


def _fits(row: Row, where: dict[str, str]) -> bool:
    return all(value in row[column] for column, value in where.items())


def _gemms(spec: GemmRows, rows: Sequence[Row]) -> Measured:
    """GEMMs; rows that repeat a shape become one with the median time."""
    times: dict[tuple[int, int, int, str, str], list[float]] = {}
    for row in rows:
        key = (int(row["m"]), int(row["n"]), int(row["k"]), row["trans_a"], row["trans_b"])
        times.setdefault(key, []).append(float(row["time_us"]))
    shapes = sorted(times)
    m, n, k = (np.array([shape[axis] for shape in shapes], dtype=np.float64) for axis in range(3))
    if spec.layout == "column_major":  # a is m x k with m contiguous unless transposed, b k x n with k contiguous
        along_k = (np.array([s[3] == "T" for s in shapes]), np.array([s[4] != "T" for s in shapes]))
    else:
        along_k = (np.full(len(shapes), True), np.full(len(shapes), True))
    operand, result = parse_format(spec.format), parse_format(spec.result_format or spec.format)
    names = dict(zip(("m", "n", "k", "trans_a", "trans_b"), range(5), strict=True))
    return Measured(
        time_us=np.array([median(times[shape]) for shape in shapes]),
        groups=tuple(tuple(str(shape[names[key]]) for key in spec.group_by) for shape in shapes),
        labels=tuple(f"{s[0]} x {s[1]} x {s[2]} {s[3]}{s[4]}".strip() for s in shapes),
        extent=np.maximum(np.maximum(m, n), k),
        work=lambda machine: gemm_work(m, n, k, machine, (operand, operand, result), along_k),
    )


def _convolutions(spec: ConvolutionRows, rows: Sequence[Row]) -> Measured:
    """One pass of convolutions; rows without a time for it are left out, repeated shapes become one."""
    gemm = Gemm(spec.gemm)
    times: dict[ConvGeometry, list[float]] = {}
    for row in rows:
        value = row[TIME_COLUMN[gemm]]
        if value and math.isfinite(float(value)):
            times.setdefault(_geometry(row), []).append(float(value) * 1e3)
    shapes = list(times)
    number = parse_format(spec.format)
    return Measured(
        time_us=np.array([median(times[shape]) for shape in shapes]),
        groups=tuple((str(c.in_channels), str(c.out_channels), str(c.kernel), str(c.in_size)) for c in shapes),
        labels=tuple(_label(shape) for shape in shapes),
        extent=np.array([max(c.batch * math.prod(c.out_size), c.in_channels, c.out_channels) for c in shapes]),
        work=lambda machine: stack([convolution_work(c, gemm, machine, (number,) * 3) for c in shapes]),
    )


def _geometry(row: Row) -> ConvGeometry:
    def pair(height: str, width: str) -> tuple[int, int]:
        return int(row[height]), int(row[width])

    return ConvGeometry(
        batch=int(row["N"]),
        in_channels=int(row["C"]),
        in_size=pair("H", "W"),
        out_channels=int(row["K"]),
        out_size=pair("out_h", "out_w"),
        kernel=pair("filter_h", "filter_w"),
        stride=pair("stride_h", "stride_w"),
        padding=pair("pad_h", "pad_w"),
    )


def _label(c: ConvGeometry) -> str:
    height, width = c.in_size
    kernel = "x".join(map(str, c.kernel))
    return f"{c.batch} x {c.in_channels} x {height} x {width}, {kernel} to {c.out_channels}, stride {c.stride[0]}"


def stack(works: Sequence[TiledWork]) -> TiledWork:
    """Many works of the same operand width as one."""
    first = works[0]
    values = {name: np.array([getattr(work, name) for work in works]) for name in vars(first)}
    return TiledWork(**{**values, "operand_bytes": first.operand_bytes})
