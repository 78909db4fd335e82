"""Results: to and from JSON and CSV, groupings, what is refused; choices and pins of a simulation."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from hwsim.arithmetic.mac import MacSpec
from hwsim.arithmetic.named import parse_format
from hwsim.errors import SpecError, UnsupportedError
from hwsim.simulation.engine import accumulation_orders, simulate, simulate_gemms
from hwsim.simulation.gemm_work import machine_order
from hwsim.simulation.result import SimulationResult
from hwsim.simulation.topology import LinearShape, RandomTopK, workload_of

CHIP = Path(__file__).resolve().parents[2] / "accelerators" / "systolic_32x32.yaml"
LAYERS = [LinearShape("fc1", 90, 70), LinearShape("fc2", 70, 10)]


@pytest.fixture(scope="module")
def result(chip):
    workload = workload_of(LAYERS, batch=8, training=True, topk=RandomTopK(9, "batch", steps=3))
    return simulate(workload, chip)


def test_json_round_trips_and_is_strict(result):
    again = SimulationResult.from_json(result.to_json())
    assert again == result
    assert again.energy == result.energy
    json.loads(result.to_json(), parse_constant=pytest.fail)


def test_another_schema_or_a_missing_part_is_refused(result):
    data = result.to_plain()
    with pytest.raises(SpecError, match="simulation/9"):
        SimulationResult.from_plain(data | {"schema": "simulation/9"})
    del data["steps"]
    with pytest.raises(SpecError, match="steps"):
        SimulationResult.from_plain(data)


def test_csv_has_one_row_an_op_and_step_and_adds_up(result, tmp_path):
    result.write_csv(tmp_path / "ops.csv")
    with (tmp_path / "ops.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(step.ops) for step in result.steps)
    assert sum(float(row["energy_pj"]) for row in rows) / 3 == pytest.approx(result.energy_pj)
    assert sum(float(row["end_cycle"]) - float(row["start_cycle"]) for row in rows) / 3 == pytest.approx(result.cycles)


def test_by_refuses_unknown_keys(result):
    with pytest.raises(SpecError, match="expected layer, phase"):
        result.by("color")


def test_assumptions_name_every_block_of_the_machine_with_its_source(result):
    covered = " ".join(what for what, _ in result.assumptions)
    for block in ("clock", "arrays", "dram", "memories[0]", "energy table"):
        assert block in covered
    assert all(source for _, source in result.assumptions)


def test_mappings_can_be_pinned_by_pattern_and_unused_pins_are_noted(chip):
    workload = workload_of(LAYERS, batch=8, training=True)
    pinned = "output_stationary tile=8x32x64 order=nmk keep=c"
    result = simulate(workload, chip, mapping={"fc1.output": pinned, "nothing.*": pinned})
    found = {op.id: op.mapping for op in result.ops}
    assert found["fc1.output"] == pinned
    assert found["fc1.grad_weight"] != pinned
    assert any("nothing.*" in note for note in result.notes)
    with pytest.raises(SpecError, match="mapping: got 'fast'"):
        simulate(workload, chip, mapping="fast")
    with pytest.raises(SpecError, match=r"mapping of gemm0: .* bytes of scratchpad, systolic_32x32 has 524288"):
        simulate_gemms([(900, 900, 900, "int8")], chip, mapping="weight_stationary tile=900x900x900 order=mnk keep=-")


def test_a_plan_that_sums_in_another_order_is_noted(chip):
    workload = workload_of(LAYERS, batch=8, mac=MacSpec("bfloat16", order="pairwise"))
    pin = "weight_stationary tile=8x70x90 order=mnk keep=abc"
    result = simulate(workload, chip, mapping=pin)
    assert result.ops[0].order == "chunked(32)"
    assert any("pairwise" in note and "chunked(32)" in note for note in result.notes)
    orders = {40: "", 20: "chunked(20)", 64: "chunked(32)"}  # tiles of k that are no multiple of the 32 rows
    for tile, order in orders.items():
        cut = simulate(workload, chip, mapping=f"weight_stationary tile=8x70x{tile} order=mnk keep=abc")
        assert cut.ops[0].order == order
    agreeing = workload_of(LAYERS, batch=8, mac=MacSpec("bfloat16", order="accelerator"))
    assert not simulate(agreeing, chip, mapping=pin).notes
    assert accumulation_orders(agreeing, chip, mapping=pin) == {
        "fc1.output": "chunked(32)",
        "fc2.output": "chunked(32)",
    }


def test_a_machine_with_one_dataflow_has_one_order(chip, change):
    bfloat16 = parse_format("bfloat16")
    for flow, order in (("weight_stationary", "chunked(32)"), ("output_stationary", "sequential")):
        machine = change(chip, arrays={"dataflow": flow})
        assert machine_order(machine, bfloat16, bfloat16) == order
        long = simulate_gemms([(64, 64, 4096, "bfloat16")], machine).ops[0]
        assert long.order == order
    deep = change(chip, arrays={"dataflow": "output_stationary", "macs_per_cycle": {"bfloat16": 4096.0}})
    assert machine_order(deep, bfloat16, bfloat16) == "chunked(4)"
    with pytest.raises(SpecError, match="chooses how to accumulate"):
        machine_order(chip, bfloat16, bfloat16)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [({"engine": "slow"}, "engine"), ({"sparsity": "yes"}, "sparsity"), ({"objective": "joy"}, "objective")],
)
def test_wrong_choices_are_named(chip, choice, expected):
    with pytest.raises(SpecError, match=f"{expected}: got"):
        simulate(workload_of(LAYERS), chip, **choice)


def test_gemms_are_checked(chip, change):
    with pytest.raises(SpecError, match=r"gemms\[0\]: got 0 x 2 x 3"):
        simulate_gemms([(0, 2, 3, "int8")], chip)
    with pytest.raises(SpecError, match="expected at least one"):
        simulate_gemms([], chip)
    narrow = change(chip, arrays={"macs_per_cycle": {"int8": 1024.0}})
    with pytest.raises(UnsupportedError, match="float32"):
        simulate_gemms([(2, 2, 3, "float32")], narrow)


def test_narrow_formats_cost_less_energy_and_traffic(chip):
    wide, narrow = (simulate_gemms([(64, 256, 256, name)], chip) for name in ("float32", "float8_e4m3fn"))
    assert narrow.energy["mac"].nominal < wide.energy["mac"].nominal
    assert narrow.bytes["dram"] == pytest.approx(wide.bytes["dram"] / 4, rel=0.05)
    assert narrow.cycles <= wide.cycles


def test_simulation_starts_without_torch_numba_or_simpy():
    code = (
        "import sys; from hwsim.simulation.engine import simulate_gemms; "
        "from hwsim.hardware.accelerator import Accelerator; from hwsim.spec import load_yaml; "
        f"chip = load_yaml({str(CHIP)!r}, Accelerator); "
        "simulate_gemms([(64, 500, 784, 'int8')], chip); "
        "print(sorted({'torch', 'numba', 'simpy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
