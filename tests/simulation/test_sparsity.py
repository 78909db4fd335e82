"""Pruned steps: what selections leave, counted against brute force, and what each kind of machine makes of them."""

from __future__ import annotations

import random

import numpy as np
import pytest

from hwsim.simulation import sparsity
from hwsim.simulation.engine import simulate
from hwsim.simulation.sparsity import Kept
from hwsim.simulation.topology import ConvShape, LinearShape, RandomTopK, workload_of
from hwsim.workload import ConvGeometry, Gemm, Op, OpKind, Phase, Selection

LAYERS = [LinearShape("fc1", 200, 160), LinearShape("fc2", 160, 120), LinearShape("fc3", 120, 10)]


def step(scope: str, kept: int = 12, **more):
    return workload_of(LAYERS, batch=32, training=True, topk=RandomTopK(kept, scope), **more)


def with_support(chip, *abilities: str):
    return chip.model_copy(update={"sparsity": chip.sparsity.model_copy(update={"supports": abilities})})


def random_selection(rng: random.Random, rows: int, extent: int, kept: int) -> Selection:
    lists = [sorted(rng.sample(range(extent), rng.randint(0, kept))) for _ in range(rows)]
    indices = np.array([i for row in lists for i in row], np.int32)
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    return Selection("s", "example", "element", rows, extent, kept, (indices,), (offsets,))


def rows_of(selection: Selection) -> list[list[int]]:
    indices, offsets = selection.indices[0], selection.offsets[0]
    return [list(map(int, indices[offsets[r] : offsets[r + 1]])) for r in range(selection.rows)]


def gemm_op(gemm: Gemm, m: int, n: int, k: int, conv: ConvGeometry | None = None) -> Op:
    axis = "k" if gemm is Gemm.GRAD_INPUT else "m"
    return Op("g", OpKind.GEMM, Phase.BACKWARD, "fc", ("a", "b"), ("c",), gemm=gemm, m=m, n=n, k=k, conv=conv,
              selection="s", selected_axis=axis)  # fmt: skip


def test_lists_and_unions_equal_brute_force():
    rng = random.Random(1)
    for _ in range(30):
        rows, extent, group = rng.randint(1, 20), rng.randint(3, 40), rng.choice([2, 4, 8])
        selection = random_selection(rng, rows, extent, min(6, extent))
        lists, kept = rows_of(selection), Kept(selection, 0)
        columns = [[r for r, row in enumerate(lists) if j in row] for j in range(extent)]
        cases = (
            (lists, gemm_op(Gemm.GRAD_INPUT, rows, 7, extent)),
            (columns, gemm_op(Gemm.GRAD_WEIGHT, extent, 7, rows)),
        )
        for want, op in cases:
            lengths = sparsity.row_lengths(op, kept)
            assert list(lengths) == [len(entry) for entry in want]
            blocks = [want[i : i + group] for i in range(0, len(want), group)]
            assert sparsity.group_lengths(lengths, group) == [max(map(len, block)) for block in blocks]
            assert sparsity.union_lengths(op, kept, group) == [len(set().union(*block)) for block in blocks]


def test_convolution_lists_are_those_of_pixels():
    rng = random.Random(2)
    batch, channels, size = 2, 5, 3
    conv = ConvGeometry(batch, 4, (size, size), channels, (size, size), (3, 3), (1, 1), (1, 1))
    selection = random_selection(rng, batch, channels * size * size, 9)
    kept = Kept(selection, 0)
    pixels = [[] for _ in range(batch * size * size)]
    for image, row in enumerate(rows_of(selection)):
        for position in row:
            pixels[image * size * size + position % (size * size)].append(position // (size * size))
    grad_input = gemm_op(Gemm.GRAD_INPUT, batch * size * size, 4 * 9, channels, conv)
    assert list(sparsity.row_lengths(grad_input, kept)) == list(map(len, pixels))
    grad_weight = gemm_op(Gemm.GRAD_WEIGHT, channels, 4 * 9, batch * size * size, conv)
    per_channel = [sum(channel in pixel for pixel in pixels) for channel in range(channels)]
    assert list(sparsity.row_lengths(grad_weight, kept)) == per_channel


def test_scattered_positions_move_the_bursts_they_touch():
    rng = random.Random(3)
    for _ in range(40):
        rows, extent, burst = rng.randint(1, 6), rng.randint(8, 100), rng.choice([32, 64])
        selection = random_selection(rng, rows, extent, 8)
        kept = Kept(selection, 0)
        if not kept.count:
            continue
        touched = {(r, j * 4 // burst) for r, row in enumerate(rows_of(selection)) for j in row}
        assert kept.scattering(32, burst) == pytest.approx(max(1, len(touched) * burst / (kept.count * 4)))


def test_batch_scope_shrinks_the_gemms_and_moves_less(chip):
    workload = step("batch")
    pruned, dense = simulate(workload, chip), simulate(workload.dense(), chip)
    by_gemm = {key: (pruned.by("gemm")[key], dense.by("gemm")[key]) for key in ("grad_input", "grad_weight", "output")}
    assert by_gemm["grad_input"][0].cycles < by_gemm["grad_input"][1].cycles
    assert by_gemm["grad_weight"][0].cycles < by_gemm["grad_weight"][1].cycles
    assert by_gemm["output"][0].macs == by_gemm["output"][1].macs
    kept_share = 12 / 120
    assert by_gemm["grad_input"][0].macs < by_gemm["grad_input"][1].macs
    op = next(op for op in pruned.ops if op.id == "fc2.grad_weight")
    assert op.macs == round(32 * 120 * 160 * kept_share)


def test_keeping_everything_costs_as_much_as_dense(chip):
    workload = step("batch", kept=10_000)
    assert not workload.selections
    assert simulate(workload, chip).steps == simulate(workload.dense(), chip).steps


def test_ideal_is_never_slower_than_real_and_dense_ignores_selections(chip):
    for scope, machine in (("batch", chip), ("example", with_support(chip, "row_skipping"))):
        workload = step(scope)
        cycles = {how: simulate(workload, machine, sparsity=how).cycles for how in ("real", "ideal", "dense")}
        assert cycles["ideal"] < cycles["real"]
        assert cycles["ideal"] < cycles["dense"]
        assert cycles["dense"] == simulate(workload.dense(), machine).cycles


def test_a_machine_without_support_gains_nothing_from_example_scope(chip):
    workload = step("example")
    plain = simulate(workload, with_support(chip))
    dense = simulate(workload.dense(), chip)
    assert plain.cycles > dense.cycles  # selection and masking come on top
    gemms = [(a, b) for a, b in zip(named(plain, "grad_"), named(dense, "grad_"), strict=True)]
    assert all(a.busy_cycles == b.busy_cycles for a, b in gemms)


def named(result, part: str):
    return [op for op in result.ops if part in op.id and op.kind == "gemm"]


def test_skipping_waits_for_the_longest_row_and_a_union_for_all(chip, change):
    fed = change(chip, scratchpad={"bytes_per_cycle": 1e6}, dram={"peak_gb_per_s": 1e6})
    workload = step("example")
    skip, union = (simulate(workload, with_support(fed, how)) for how in ("row_skipping", "tile_union"))
    for a, b in zip(named(skip, "fc2.grad_input"), named(union, "fc2.grad_input"), strict=True):
        assert a.busy_cycles < b.busy_cycles
        assert a.macs == b.macs
    op = named(skip, "fc2.grad_weight")[0]
    assert op.busy_cycles > 1.2 * op.ideal_cycles  # load imbalance: rows kept different numbers of examples


def test_zero_gating_saves_energy_and_no_time(chip):
    workload = step("example")
    plain, gated = simulate(workload, with_support(chip)), simulate(workload, with_support(chip, "zero_gating"))
    assert plain.cycles == gated.cycles
    assert gated.energy["mac"].nominal < plain.energy["mac"].nominal


def test_relu_zeros_make_a_stronger_dense_rival(chip):
    from dataclasses import replace

    workload = workload_of(LAYERS, batch=32, training=True)
    tensors = {name: replace(t, density=(0.4,)) if "relu" in name else t for name, t in workload.tensors.items()}
    recorded = replace(workload, tensors=tensors)
    dense, zeros = simulate(recorded, chip), simulate(recorded, chip, sparsity="zeros")
    assert zeros.busy_cycles < dense.busy_cycles
    assert zeros.bytes["dram"] == pytest.approx(dense.bytes["dram"], rel=0.05)  # stored dense all the same
    able = simulate(recorded, with_support(chip, "zero_skipping"))
    assert able.busy_cycles == zeros.busy_cycles


def test_recorded_steps_give_mean_and_range(chip):
    workload = workload_of(LAYERS, batch=32, training=True, topk=RandomTopK(12, "example", seed=1, steps=4))
    result = simulate(workload, with_support(chip, "row_skipping"))
    spread = result.spread()
    assert len(result.steps) == 4
    assert spread.low < spread.high
    assert spread.low <= spread.mean == result.cycles <= spread.high


def test_convolutions_prune_channels(chip):
    layers = [ConvShape("c1", 4, (12, 12), 32, (3, 3), (1, 1), (1, 1)), ConvShape("c2", 32, (12, 12), 128, (3, 3)),
              LinearShape("fc", 12800, 10)]  # fmt: skip
    for scope in ("batch", "example"):
        workload = workload_of(layers, batch=4, training=True, topk=RandomTopK(4, scope))
        machine = with_support(chip, "gather", "row_skipping")
        pruned, dense = simulate(workload, machine), simulate(workload.dense(), machine)
        assert pruned.by("gemm")["grad_input"].macs < dense.by("gemm")["grad_input"].macs
        first, whole = (next(op for op in r.ops if op.id == "c2.grad_input") for r in (pruned, dense))
        assert first.busy_cycles < whole.busy_cycles
