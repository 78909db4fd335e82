"""The summary's numbers against numbers worked out by hand, and against the simulation that they condense."""

from dataclasses import replace

import pytest

from hwsim.errors import SpecError
from hwsim.hardware.energy import Range
from hwsim.records import Configuration, EnergyRange, Machine, SimulatedOp, SimulationRecord, TrialRecord
from hwsim.simulation.result import OpResult, SimulationResult, StepResult, Traffic
from hwsim.summary import Spread, steps_to, summarize, t95
from hwsim.training.result import TrainingSummary

CHIP = Machine(name="chip", clock_ghz=2.0)


def make_configuration(name, sparse=None):
    return Configuration(name=name, family=name, precision="float32", sparse=sparse)


def make_trial(configuration, seed, test, dev=(0.5, 0.9), outcome="finished"):
    return TrialRecord(
        key=f"{configuration}{seed}",
        configuration=configuration,
        training=TrainingSummary(
            model="m",
            data="d",
            plan="float32",
            sparse=None,
            seed=seed,
            outcome=outcome,
            test_accuracy=test,
            dev_accuracy=max((value for value in dev if value is not None), default=None),
            selected_epoch=0,
            steps=100,
            steps_per_epoch=50,
            curves={"step": tuple(50.0 * (i + 1) for i in range(len(dev))), "dev_accuracy": tuple(dev)},
            wall_s=0.0,
            backends=(),
            hashes={},
        ),
    )


def make_record_op(name, phase, cycles, energy, gemm="", kind="gemm", launch_us=0.0):
    prices = {"mac": EnergyRange(low=energy / 2, nominal=energy, high=energy * 3)}
    return SimulatedOp(
        id=name, layer="fc", phase=phase, kind=kind, gemm=gemm, cycles=cycles, energy_pj=prices, launch_us=launch_us
    )


def make_simulation(configuration, backward, work="trained", seed=0):
    ops = [
        make_record_op("output", "forward", 100.0, 10.0, "output", launch_us=0.25),
        make_record_op("select", "backward", 5.0 if backward < 100 else 0.0, 1.0, kind="select"),
        make_record_op("grad_weight", "backward", backward, backward / 10, "grad_weight"),
        make_record_op("grad_input", "backward", backward, backward / 10, "grad_input"),
        make_record_op("update", "update", 50.0, 5.0, kind="update"),
    ]
    return SimulationRecord(
        configuration=configuration,
        accelerator="chip",
        work=work,
        seed=seed,
        clock_ghz=2.0,
        ops=ops,
        step_cycles=[sum(op.cycles for op in ops)],
        step_energy_pj=[1.0],
    )


CONFIGURATIONS = (make_configuration("dense"), make_configuration("topk", "top-k"))
TRIALS = (
    *(make_trial("dense", seed, test) for seed, test in enumerate((0.97, 0.98, 0.96))),
    *(make_trial("topk", seed, test) for seed, test in enumerate((0.965, 0.985, 0.955))),
)
SIMULATIONS = (make_simulation("dense", 100.0), make_simulation("topk", 100.0, "dense"), make_simulation("topk", 20.0))


def make_summary(configurations=CONFIGURATIONS, trials=TRIALS, simulations=SIMULATIONS, baseline="dense", target=None):
    return summarize(configurations, trials, [CHIP], simulations, baseline, target)


def test_a_step_costs_the_sum_of_its_ops():
    row = make_summary().cost_of("topk", "chip")
    assert row.step.cycles == 100 + 5 + 20 + 20 + 50
    assert row.step.time_us == pytest.approx(195 / 2.0 / 1e3 + 0.25)
    assert (row.step.energy_pj.low, row.step.energy_pj.nominal, row.step.energy_pj.high) == (10.0, 20.0, 60.0)
    assert row.backward.cycles == 45
    assert row.backward_gemms.cycles == 40


def test_gains_of_topk_are_against_the_same_formats_without_selection():
    row = make_summary().cost_of("topk", "chip")
    assert row.gain_backward_gemms.cycles == 200 / 40
    assert row.gain_backward.cycles == 200 / 45
    assert row.gain_step.cycles == 350 / 195
    assert row.gain_backward.energy == pytest.approx((10 + 10 + 1) / (2 + 2 + 1))
    assert row.gain_over_baseline.cycles == 350 / 195
    assert row.gain_over_zeros is None  # that rival was not simulated


def test_the_rival_that_skips_zeros_is_reported_when_simulated():
    zeros = make_simulation("topk", 50.0, "zeros")
    row = make_summary(simulations=(*SIMULATIONS, zeros)).cost_of("topk", "chip")
    assert row.gain_over_zeros.cycles == (100 + 5 + 50 + 50 + 50) / 195


def test_a_dense_configuration_has_no_topk_gain_and_the_baseline_no_gain_at_all():
    row = make_summary().cost_of("dense", "chip")
    assert (row.gain_step, row.gain_backward, row.gain_over_baseline, row.gain_to_target) == (None, None, None, None)


def test_costs_are_means_over_simulated_trials():
    both = (*SIMULATIONS, make_simulation("topk", 40.0, seed=1))
    assert make_summary(simulations=both).cost_of("topk", "chip").step.cycles == (195 + 235) / 2


def test_what_was_not_simulated_has_no_row():
    assert make_summary(simulations=SIMULATIONS[:1]).cost_of("topk", "chip") is None


def test_the_target_lies_one_point_under_the_baseline_unless_stated():
    assert make_summary().target_accuracy == pytest.approx(0.9 - 0.01)
    assert make_summary(target=0.8).target_accuracy == 0.8
    assert make_summary(trials=()).target_accuracy is None


def test_cost_to_target_is_step_cost_times_steps():
    summary = make_summary()
    row = summary.cost_of("topk", "chip")
    assert summary.accuracy_of("topk").steps_to_target.mean == 100.0  # the second evaluation reaches 0.89
    assert row.to_target.energy_pj.nominal == row.step.energy_pj.nominal * 100
    assert row.gain_to_target.cycles == pytest.approx(350 / 195)


def test_no_cost_to_target_unless_every_trial_reaches_it():
    slow = make_trial("topk", 2, 0.955, dev=(0.5, 0.6))
    summary = make_summary(trials=(*TRIALS[:5], slow))
    assert summary.accuracy_of("topk").reached_target == 2
    assert summary.cost_of("topk", "chip").to_target is None


def test_steps_to_target_skips_evaluations_without_a_number():
    trial = make_trial("dense", 0, 0.9, dev=(None, 0.7, 0.9))
    assert steps_to(trial, 0.7) == 100.0
    assert steps_to(trial, 0.95) is None


def test_differences_are_paired_by_seed():
    row = make_summary().accuracy_of("topk")
    assert row.difference.mean == pytest.approx((-0.005 + 0.005 - 0.005) / 3)
    assert row.within_noise is True
    shifted = tuple(make_trial("topk", seed, test - 0.02) for seed, test in enumerate((0.9701, 0.98, 0.9599)))
    assert make_summary(trials=(*TRIALS[:3], *shifted)).accuracy_of("topk").within_noise is False


def test_one_seed_has_no_deviation_no_interval_and_no_verdict_on_noise():
    row = make_summary(trials=(TRIALS[0], TRIALS[3])).accuracy_of("topk")
    assert row.test_accuracy.deviation is None
    assert row.difference.interval is None
    assert row.within_noise is None


def test_diverged_trials_are_counted():
    lost = make_trial("topk", 0, None, outcome="diverged")
    row = make_summary(trials=(*TRIALS[:3], lost)).accuracy_of("topk")
    assert (row.trials, row.diverged, row.test_accuracy) == (1, 1, None)


def test_spread_is_that_of_a_sample():
    spread = Spread.of([1.0, 2.0, 4.0])
    assert spread.mean == pytest.approx(7 / 3)
    assert spread.deviation == pytest.approx((14 / 3 / 2) ** 0.5)
    assert (spread.low, spread.high, spread.count) == (1.0, 4.0, 3)
    half = t95(2) * spread.deviation / 3**0.5
    assert spread.interval == pytest.approx((7 / 3 - half, 7 / 3 + half))
    assert Spread.of([]) is None


def test_students_t_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for freedom in (*range(1, 31), 31, 40, 60, 120, 1000):
        assert t95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=2e-3)


def make_result():
    def op(name, start, end, macs, dram, step):
        return OpResult(
            id=name,
            layer="fc",
            phase="backward",
            gemm="grad_weight",
            kind="gemm",
            start_cycle=start,
            end_cycle=end,
            busy_cycles=(end - start) / 2,
            stalls={"dram": (end - start) / 2} if step else {"fill_drain": (end - start) / 2},
            ideal_cycles=macs / 4,
            macs=macs,
            operations=0,
            bytes={"dram": Traffic(dram, 2 * dram)},
            useful_dram_bytes=dram,
            energy={"mac": Range(macs * 1.0, macs * 2.0, macs * 3.0)}
            | ({"select": Range(1.0, 2.0, 4.0)} if step else {}),
            launch_us=0.5,
        )

    steps = tuple(
        StepResult(
            100 * i, (op("a", 0.0, 10.0 + i, 8 + 4 * i, 64, i), op("b", 10.0 + i, 30.0 + i, 40, 128 * i, i)), 1000 + i
        )
        for i in range(3)
    )
    return SimulationResult("w", "chip", "fast", "real", 2.0, steps, (("an assumption", "a source"),), ("a note",))


def test_a_condensed_simulation_keeps_every_total():
    result = make_result()
    record = SimulationRecord.of("topk", 0, "trained", result)
    assert sum(op.cycles for op in record.ops) == pytest.approx(result.cycles)
    assert sum(op.macs for op in record.ops) == pytest.approx(result.macs)
    assert sum(op.launch_us for op in record.ops) == pytest.approx(result.launch_us)
    assert sum(op.bytes["dram"] for op in record.ops) == pytest.approx(result.bytes["dram"])
    assert sum(op.ideal_cycles for op in record.ops) / record_cycles(record) == pytest.approx(result.utilization)
    for cause, cycles in result.stalls.items():
        assert sum(op.stalls.get(cause, 0.0) for op in record.ops) == pytest.approx(cycles)
    for component, price in result.energy.items():
        for end in ("low", "nominal", "high"):
            ours = sum(getattr(op.energy_pj[component], end) for op in record.ops if component in op.energy_pj)
            assert ours == pytest.approx(getattr(price, end))
    assert record.step_cycles == tuple(step.cycles for step in result.steps)
    assert record.assumptions[0].source == "a source"
    assert record.notes == ("a note",)


def record_cycles(record):
    return sum(op.cycles for op in record.ops)


def test_a_lost_op_shows_in_the_condensed_totals():
    result = make_result()
    record = SimulationRecord.of("topk", 0, "trained", result)
    broken = record.model_copy(update={"ops": record.ops[:1]})
    assert record_cycles(broken) != pytest.approx(result.cycles)


def test_steps_with_other_ops_cannot_be_condensed():
    result = make_result()
    short = replace(result.steps[1], ops=result.steps[1].ops[:1])
    with pytest.raises(SpecError, match="step 100 has other ops"):
        SimulationRecord.of("topk", 0, "trained", replace(result, steps=(result.steps[0], short)))
