"""Mappings: their text, what tiles cost against brute force, and the search."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest

from hwsim.errors import SpecError
from hwsim.hardware.accelerator import Accelerator
from hwsim.hardware.mapping import (
    DATAFLOWS,
    ORDERS,
    GemmWork,
    Mapping,
    Operand,
)
from hwsim.hardware.mapping_cost import image_elements, tile_bytes
from hwsim.hardware.mapping_search import SearchPrices, search
from hwsim.simulation import recurrence
from hwsim.simulation.lowering import Lowering
from hwsim.simulation.program import TICKS_PER_CYCLE, Job, sum_counts
from hwsim.spec import load_yaml
from hwsim.workload import ConvGeometry

CHIP = load_yaml(Path(__file__).resolve().parents[2] / "accelerators" / "systolic_32x32.yaml", Accelerator)
WORD = 32 * 256


def gemm(m, n, k, **sides) -> GemmWork:
    found = {"a": Operand(WORD, "k"), "b": Operand(WORD, "n"), "c": Operand(WORD, "n"), **sides}
    return GemmWork(m, n, k, 1, found["a"], found["b"], found["c"], 32, Fraction(1024))


def done(work: GemmWork, mapping: Mapping) -> int:
    latency = round(CHIP.dram_latency_cycles * TICKS_PER_CYCLE)
    return recurrence.run([Job("g", "array", Lowering(CHIP).gemm(work, mapping))], 2, latency)[0].done


def test_text_round_trips_and_mistakes_show_an_example():
    for flow, order, keep in product(DATAFLOWS, ORDERS, ("", "a", "bc", "abc")):
        mapping = Mapping(flow, (1, 20, 300), order, keep)
        assert Mapping.parse(str(mapping)) == mapping
    for wrong in (
        "",
        "weight_stationary",
        "weight_stationary tile=1x2 order=mnk keep=-",
        "row tile=1x2x3 order=mnk keep=-",
    ):
        with pytest.raises(SpecError, match="expected for example"):
            Mapping.parse(wrong)


@pytest.mark.parametrize("contiguous", ["m", "k"])
def test_bytes_of_a_tile_are_the_bursts_it_touches(contiguous):
    """Brute force: mark the bursts of every element, in a matrix whose lines start at a burst."""
    rng = random.Random(contiguous)
    for _ in range(60):
        m, k, burst = rng.randint(1, 20), rng.randint(1, 20), rng.choice([4, 16, 64])
        tile_m, tile_k = rng.randint(1, m), rng.randint(1, k)
        work = gemm(m, 5, k, a=Operand(WORD, contiguous))
        width, lines, whole = (tile_k, tile_m, k) if contiguous == "k" else (tile_m, tile_k, m)
        stride = whole * 4 if width == whole else -(-whole * 4 // burst) * burst
        touched = {(line * stride + 4 * i) // burst for line in range(lines) for i in range(width)}
        assert tile_bytes(work, "a", (tile_m, 5, tile_k), burst) == len(touched) * burst


def test_bytes_under_an_unfolded_tile_cover_the_image_pixels_it_reads():
    rng = random.Random(1)
    for _ in range(40):
        size, kernel, stride = rng.randint(3, 12), rng.choice([1, 3]), rng.choice([1, 2])
        out = (size - kernel) // stride + 1
        channels, batch = rng.randint(1, 4), rng.randint(1, 3)
        conv = ConvGeometry(batch, channels, (size, size), 8, (out, out), (kernel, kernel), (stride, stride))
        pixels, columns = batch * out * out, channels * kernel * kernel
        everything = image_elements(conv, "a", {"m": pixels, "n": 8, "k": columns})
        read = {
            (image, channel, y * stride + dy, x * stride + dx)
            for image, y, x in product(range(batch), range(out), range(out))
            for channel, dy, dx in product(range(channels), range(kernel), range(kernel))
        }
        # Whole rows are fetched, down to the last one that is read.
        rows = (out - 1) * stride + kernel
        assert everything == batch * channels * rows * size >= len(read)
        one_row = image_elements(conv, "a", {"m": out, "n": 8, "k": columns})
        assert one_row == channels * kernel * size


def test_traffic_follows_the_loop_nest():
    """What is fetched, against a walk over the loops that remembers only what the mapping says is kept."""
    rng = random.Random(6)
    for _ in range(50):
        m, n, k = (rng.randint(1, 9) for _ in range(3))
        tile = tuple(rng.randint(1, extent) for extent in (m, n, k))
        order, keep = rng.choice(ORDERS), "".join(x for x in "abc" if rng.random() < 0.5)
        chip = CHIP.model_copy(update={"dram": CHIP.dram.model_copy(update={"burst_bytes": 1})})
        counts = sum_counts(Lowering(chip).gemm(gemm(m, n, k), Mapping(DATAFLOWS[0], tile, order, keep)))
        extents = dict(zip("mnk", (m, n, k), strict=True))
        steps = dict(zip("mnk", tile, strict=True))
        read = written = 0
        for starts in product(*(range(0, extents[axis], steps[axis]) for axis in order)):
            at = dict(zip(order, starts, strict=True))
            size = {axis: min(steps[axis], extents[axis] - at[axis]) for axis in "mnk"}
            read += size["m"] * size["k"] if at["n"] == 0 or "a" not in keep else 0
            read += size["k"] * size["n"] if at["m"] == 0 or "b" not in keep else 0
            last = at["k"] + size["k"] == k
            read += size["m"] * size["n"] if at["k"] and "c" not in keep else 0
            written += size["m"] * size["n"] if last or "c" not in keep else 0
        assert (counts.dram_read, counts.dram_written) == (4 * read, 4 * written)


def test_the_search_is_deterministic_fits_and_predicts_the_run():
    rng = random.Random(9)
    room = 64 * 1024
    for _ in range(20):
        work = gemm(*(rng.randint(1, 400) for _ in range(3)))
        first, again = search(work, CHIP, room), search(work, CHIP, room)
        assert first == again
        exact = done(work, first[0].mapping)
        latency = CHIP.dram_latency_cycles * TICKS_PER_CYCLE
        assert first[0].ticks == pytest.approx(exact - latency, rel=0.25)


def test_the_search_is_close_to_the_best_of_its_whole_space():
    """Every tile of a small GEMM on a tiny room, executed: the search's choice is within 15 % of the best of them."""
    room = 6 * 1024
    for shape in ((40, 40, 40), (64, 8, 96), (33, 65, 20)):
        work = gemm(*shape)
        chosen = min(done(work, item.mapping) for item in search(work, CHIP, room))
        best = chosen
        for ranked in search(work, CHIP, room, best=4000):
            best = min(best, done(work, ranked.mapping))
        assert chosen <= 1.15 * best


def test_a_gemm_that_cannot_fit_says_so():
    with pytest.raises(SpecError, match="does not fit in 16 bytes"):
        search(gemm(100, 100, 100), CHIP, 16)


def test_objectives_differ_where_energy_and_time_do():
    work = gemm(500, 300, 700)
    fast = search(work, CHIP, 32 * 1024)[0].mapping
    frugal = search(work, CHIP, 32 * 1024, SearchPrices("energy"))[0].mapping
    moved = [sum_counts(Lowering(CHIP).gemm(work, mapping)) for mapping in (fast, frugal)]
    energy = [(c.dram_read + c.dram_written) * 31.2 + (c.inner_read + c.inner_written) * 2.5 for c in moved]
    assert energy[1] <= energy[0]
