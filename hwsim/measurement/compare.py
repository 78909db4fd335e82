"""Simulated against measured: errors by group with intervals, worst cases, and the speed-up of top-k over k.

The caller simulates (`work.workload_of` says what); here times are put side by side. Error is simulated / measured -
1. Above
`SHORT_US` errors are relative (MAPE: the mean of |error|); below, where launch cost rules, absolute in microseconds.
An interval is a bootstrap over shapes: rows of one shape stay together, since their errors are alike.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hwsim.measurement.record import Measurement, quantile
from hwsim.simulation.result import SimulationResult

SHORT_US = 20.0
RESAMPLES = 1000

# meProp, arXiv 1706.06197, table 7: k -> milliseconds on a GTX 1080, h = 8192, batch 1024; 0 is the dense baseline.
TABLE7_MS = {0: 308.00, 8: 8.37, 16: 9.16, 32: 11.20, 64: 14.38, 128: 21.28, 256: 38.57, 512: 69.95}
# The same paper, table 8: overall backpropagation of a network with h = 8192.
TABLE8_MS = {0: 17696.2, 8: 1501.5, 16: 1542.8, 32: 1656.9, 64: 1828.3, 128: 2200.0, 256: 3149.6, 512: 4874.1}


@dataclass(frozen=True)
class Pair:
    """One kernel, measured and simulated."""

    measurement: Measurement
    simulated_us: float
    simulated_uj: float

    @property
    def error(self) -> float:
        """Simulated time over measured time, less 1."""
        return self.simulated_us / self.measurement.timing.time_us - 1

    @property
    def energy_error(self) -> float | None:
        """Simulated energy over measured energy, less 1; None where no energy was measured."""
        energy = self.measurement.energy
        return None if energy is None else self.simulated_uj / energy.energy_uj - 1

    @property
    def shape_key(self) -> tuple[int, ...]:
        """What ties rows together in a resample and in a split: the sizes, whatever their order."""
        return tuple(sorted(self.measurement.shape.values()))


@dataclass(frozen=True)
class Summary:
    """Errors of a group of pairs."""

    name: str
    rows: int  # of at least SHORT_US
    mape: float | None  # mean |error| of those
    mape_low: float | None  # 95 % interval
    mape_high: float | None
    bias: float | None  # mean signed error of those
    short_rows: int
    short_us: float | None  # mean |simulated - measured| of the shorter ones, in microseconds


@dataclass(frozen=True)
class Comparison:
    """All pairs, and what could not be paired."""

    pairs: tuple[Pair, ...]
    unmodeled: tuple[str, ...]  # ids of measurements without a simulation

    def summary(self, name: str, keep: Callable[[Pair], bool] = lambda pair: True) -> Summary:
        """Summarize the pairs that `keep` takes."""
        return summarize(name, [pair for pair in self.pairs if keep(pair)])

    def by(self, key: Callable[[Measurement], str]) -> tuple[Summary, ...]:
        """One summary for each value of `key`, in order of first appearance."""
        groups: dict[str, list[Pair]] = {}
        for pair in self.pairs:
            groups.setdefault(key(pair.measurement), []).append(pair)
        return tuple(summarize(name, pairs) for name, pairs in groups.items())

    def worst(self, count: int = 10) -> tuple[Pair, ...]:
        """The pairs of at least SHORT_US with the largest |log(simulated / measured)|: half counts as much as
        double."""
        long = [pair for pair in self.pairs if pair.measurement.timing.time_us >= SHORT_US and pair.simulated_us > 0]
        return tuple(sorted(long, key=lambda pair: -abs(math.log(pair.error + 1)))[:count])

    def held_out(self, share: float = 0.5, seed: int = 0) -> tuple[Comparison, Comparison]:
        """Split into pairs to fit on and pairs held out, whole shapes at a time; the same split for the same seed."""
        fitted: list[Pair] = []
        held: list[Pair] = []
        for pair in self.pairs:
            place = zlib.crc32(repr((seed, pair.shape_key)).encode()) / 2**32
            (held if place < share else fitted).append(pair)
        return Comparison(tuple(fitted), ()), Comparison(tuple(held), ())

    def energy_mape(self) -> tuple[int, float | None]:
        """Number of pairs with measured energy, and their mean |error|."""
        errors = [abs(pair.energy_error) for pair in self.pairs if pair.energy_error is not None]
        return len(errors), sum(errors) / len(errors) if errors else None


def compare(measurements: Iterable[Measurement], simulated: Mapping[str, SimulationResult]) -> Comparison:
    """Pair measurements with simulations of the same id; a simulation of no time at all says that it is not modeled."""
    pairs, unmodeled = [], []
    for measurement in measurements:
        result = simulated.get(measurement.id)
        if result is None or result.time_us - result.launch_us <= 0:
            unmodeled.append(measurement.id)
        else:
            pairs.append(Pair(measurement, result.time_us, result.energy_pj / 1e6))
    return Comparison(tuple(pairs), tuple(unmodeled))


def summarize(name: str, pairs: Sequence[Pair]) -> Summary:
    """Errors of some pairs, with the bootstrap interval of their MAPE."""
    long = [pair for pair in pairs if pair.measurement.timing.time_us >= SHORT_US]
    short = [pair for pair in pairs if pair.measurement.timing.time_us < SHORT_US]
    low, high = bootstrap(long) if long else (None, None)
    return Summary(
        name=name,
        rows=len(long),
        mape=_mean(abs(pair.error) for pair in long),
        mape_low=low,
        mape_high=high,
        bias=_mean(pair.error for pair in long),
        short_rows=len(short),
        short_us=_mean(abs(pair.simulated_us - pair.measurement.timing.time_us) for pair in short),
    )


def bootstrap(pairs: Sequence[Pair], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the MAPE: shapes drawn with replacement, all rows of a drawn shape with it."""
    clusters: dict[tuple[int, ...], list[float]] = {}
    for pair in pairs:
        clusters.setdefault(pair.shape_key, []).append(abs(pair.error))
    groups = list(clusters.values())
    draw = random.Random(seed)
    means = []
    for _ in range(RESAMPLES):
        rows = [error for _ in groups for error in draw.choice(groups)]
        means.append(sum(rows) / len(rows))
    return quantile(means, 0.025), quantile(means, 0.975)


@dataclass(frozen=True)
class SpeedUp:
    """Top-k against dense backward of one layer on one device: k -> (dense time / top-k time)."""

    kernel: str
    dtype: str
    batch: int
    out: int
    inputs: int
    dense_us: float
    ratios: tuple[tuple[int, float], ...]  # ascending k

    @property
    def break_even(self) -> float | None:
        """The k at which both take the same time, between measured points on logarithmic axes; None if not crossed."""
        for (k0, r0), (k1, r1) in zip(self.ratios, self.ratios[1:], strict=False):
            if r0 >= 1 > r1:
                share = math.log(r0) / (math.log(r0) - math.log(r1))
                return k0 * (k1 / k0) ** share
        return None


def speed_ups(measurements: Iterable[Measurement]) -> tuple[SpeedUp, ...]:
    """Collect whole backward passes of layers, dense and top-k, into curves over k."""
    dense: dict[tuple[str, int, int, int], float] = {}
    curves: dict[tuple[str, str, int, int, int], dict[int, float]] = {}
    for entry in measurements:
        if entry.family != "topk_backward" or entry.operation != "backward" or entry.energy is not None:
            continue
        layer = (entry.dtype, entry.shape["batch"], entry.shape["out"], entry.shape["inputs"])
        if entry.kernel == "dense":
            dense[layer] = entry.timing.time_us
        else:
            curves.setdefault((entry.kernel, *layer), {})[entry.shape["kept"]] = entry.timing.time_us
    found = []
    for (kernel, dtype, batch, out, inputs), times in curves.items():
        base = dense.get((dtype, batch, out, inputs))
        if base is not None:
            ratios = tuple((kept, base / time) for kept, time in sorted(times.items()))
            found.append(SpeedUp(kernel, dtype, batch, out, inputs, base, ratios))
    return tuple(found)


def shape_against_table7(curve: SpeedUp) -> list[tuple[int, float, float | None]]:
    """(k, the paper's speed-up, ours or None): only the shape compares, another GPU of another year took the times."""
    ours = dict(curve.ratios)
    return [(kept, TABLE7_MS[0] / ms, ours.get(kept)) for kept, ms in TABLE7_MS.items() if kept]


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None
