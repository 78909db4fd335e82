"""Results as a run would leave them, with made-up numbers: built through the real types, from a formula of the work.

Nothing here is simulated or trained: the tests of the report need numbers of a plausible size and shape.
"""

from math import exp

import pytest

from hwsim.hardware.energy import Range
from hwsim.records import Assumption, Configuration, Machine, SimulationRecord, TrialRecord
from hwsim.results import Provenance, Results
from hwsim.section import Axis, Column, Figure, ReferenceLine, Section, Series, Table
from hwsim.simulation.result import OpResult, SimulationResult, StepResult, Traffic
from hwsim.training.result import LayerSparsity, TrainingSummary

LAYERS = (("fc1", 64, 500), ("fc2", 500, 500), ("fc3", 500, 10))
BATCH = 64
KEPT = {"dense": 1.0, "fp8": 1.0, "topk k=10": 0.02, "topk k=40": 0.08, "fp8_topk": 0.08}
BYTES = {"dense": 4, "fp8": 1, "topk k=10": 4, "topk k=40": 4, "fp8_topk": 1}
ACCURACY = {"dense": 0.974, "fp8": 0.971, "topk k=10": 0.958, "topk k=40": 0.9745, "fp8_topk": 0.9725}
MACHINES = {"systolic_32x32": (1.0, 1024, 64.0), "edge_trainer": (0.4, 256, 8.0)}


def make_op(name, layer, phase, kind, gemm, macs, moved, start, machine, share=1.0):
    _, peak, bandwidth = MACHINES[machine]
    ideal = macs / peak
    memory = moved / bandwidth
    cycles = max(ideal * 1.3, memory) + 40
    busy = min(ideal * 1.1, cycles)
    idle = cycles - busy
    stalls = {"dram": max(0.0, memory - busy), "fill_drain": 0.0, "selection": 0.0}
    cause = "selection" if kind == "select" else "fill_drain"
    stalls["dram"] = min(stalls["dram"], idle)
    stalls[cause] = idle - stalls["dram"]
    energy = {
        "mac": Range(macs * 0.8, macs * 1.5, macs * 4.6) * share,
        "scratchpad": Range(moved * 0.8, moved * 1.2, moved * 1.9),
        "dram": Range(moved * 20.0, moved * 31.0, moved * 50.0),
        "static": Range(cycles * 1.0, cycles * 2.0, cycles * 3.0),
    }
    if kind == "select":
        energy["select"] = Range(moved * 0.1, moved * 0.3, moved * 0.6)
    return OpResult(
        id=name,
        layer=layer,
        phase=phase,
        gemm=gemm,
        kind=kind,
        start_cycle=start,
        end_cycle=start + cycles,
        busy_cycles=busy,
        stalls=stalls,
        ideal_cycles=ideal,
        macs=int(macs),
        operations=0,
        bytes={"scratchpad": Traffic(int(2 * moved), 0), "dram": Traffic(int(moved), 0)},
        useful_dram_bytes=int(moved),
        energy=energy,
        launch_us=0.0,
        mapping="32 x 32",
        order="chunked(32)",
    )


def make_simulation(configuration, machine, dense=False):
    kept = 1.0 if dense else KEPT[configuration]
    size = BYTES[configuration]
    steps = []
    for step in range(4):
        ops, now = [], 0.0
        jitter = 1 + 0.01 * step * (kept < 1)

        def add(name, layer, phase, kind, gemm, macs, moved, jitter=jitter, ops=ops):
            start = ops[-1].end_cycle if ops else 0.0
            ops.append(make_op(name, layer, phase, kind, gemm, macs * jitter, moved * jitter, start, machine))

        for layer, fan_in, fan_out in LAYERS:
            macs = BATCH * fan_in * fan_out
            add(f"{layer}.output", layer, "forward", "gemm", "output", macs, size * (fan_in * fan_out + BATCH * fan_in))
            add(f"{layer}.relu", layer, "forward", "elementwise", "", 0, size * BATCH * fan_out)
        add("loss", "", "loss", "reduce", "", 0, 4 * BATCH * 10)
        for layer, fan_in, fan_out in reversed(LAYERS):
            macs = BATCH * fan_in * fan_out * kept
            if kept < 1:
                add(f"{layer}.select", layer, "backward", "select", "", 0, size * BATCH * fan_out)
                add(f"{layer}.gather", layer, "backward", "gather", "", 0, size * BATCH * fan_out * kept)
            traffic = size * fan_in * fan_out * max(kept, 0.05)
            add(f"{layer}.grad_weight", layer, "backward", "gemm", "grad_weight", macs, traffic)
            add(f"{layer}.grad_relu", layer, "backward", "elementwise", "", 0, size * BATCH * fan_out)
            if layer != "fc1":
                add(f"{layer}.grad_input", layer, "backward", "gemm", "grad_input", macs, traffic)
        for layer, fan_in, fan_out in LAYERS:
            add(f"{layer}.update", layer, "update", "update", "", 0, 3 * 4 * fan_in * fan_out / 4)
        del now
        steps.append(StepResult(step * 100, tuple(ops), 1_000_000))
    return SimulationResult(
        workload="mlp",
        accelerator=machine,
        engine="fast",
        sparsity="dense" if dense else "real",
        clock_ghz=MACHINES[machine][0],
        steps=tuple(steps),
        assumptions=(("compare energy from the 8-bit adder", "Horowitz, ISSCC 2014"),),
        notes=("fc1.output: the plan sums sequentially, this machine in chunks of 32.",),
    )


def make_training(configuration, seed, epochs=8):
    wobble = (len(configuration) * 7 + seed * 3) % 5 - 2  # a spread over seeds that differs by configuration
    final = ACCURACY[configuration] + 0.0006 * wobble + 0.001 * (seed - 1)
    reach = 0.6 if "topk" in configuration else 0.8
    curve = [final - 0.4 * exp(-reach * (epoch + 1)) for epoch in range(epochs)]
    sparsity = ()
    if KEPT[configuration] < 1:
        sparsity = tuple(
            LayerSparsity(
                layer=layer,
                extent=width,
                kept_share=KEPT[configuration],
                union_share=min(1.0, KEPT[configuration] * 6),
                norm_share=0.93,
                example_overlap=0.21,
                step_overlap=0.64,
            )
            for layer, _, width in LAYERS[:2]
        )
    return TrainingSummary(
        model="mlp_mnist",
        data="mnist",
        plan="float32" if BYTES[configuration] == 4 else "fp8_hybrid",
        sparse=None,
        seed=seed,
        outcome="finished",
        test_accuracy=final,
        dev_accuracy=final + 0.001,
        selected_epoch=epochs - 1,
        steps=epochs * 100,
        steps_per_epoch=100,
        curves={
            "step": tuple(100.0 * (epoch + 1) for epoch in range(epochs)),
            "epoch": tuple(float(epoch + 1) for epoch in range(epochs)),
            "train_loss": tuple(2.3 * exp(-reach * (epoch + 1)) + 0.02 * seed for epoch in range(epochs)),
            "dev_accuracy": tuple(value + 0.001 for value in curve),
            "test_accuracy": tuple(curve),
        },
        wall_s=1.0,
        backends=("numba",),
        hashes={"data": "0" * 64},
        sparsity=sparsity,
    )


def make_results(configurations=tuple(KEPT), machines=tuple(MACHINES), seeds=(0, 1, 2), **changes):
    simulations = []
    for machine in machines:
        for configuration in configurations:
            works = ("dense", "trained") if KEPT[configuration] < 1 else ("trained",)
            for work in works:
                result = make_simulation(configuration, machine, dense=work == "dense")
                simulations.append(SimulationRecord.of(configuration, seeds[0], work, result))
    fields = {
        "experiment": {
            "name": "made_up",
            "question": "How many cycles and how much energy does top-k backprop save at equal accuracy?",
            "model": "mlp_mnist",
            "data": "mnist",
            "seeds": list(seeds),
            "accelerators": list(machines),
            "baseline": configurations[0],
        },
        "configurations": [
            Configuration(
                name=name,
                family=name.split()[0],
                precision="float32" if BYTES[name] == 4 else "fp8_hybrid, accumulator bfloat16",
                sparse=None if KEPT[name] == 1 else f"top-k ({KEPT[name]:.0%}, over example)",
                settings={"precision": "float32"},
            )
            for name in configurations
        ],
        "trials": [
            TrialRecord(key=f"{name}-{seed}", configuration=name, training=make_training(name, seed))
            for name in configurations
            for seed in seeds
        ],
        "machines": [
            Machine(
                name=name,
                description="a made-up machine",
                clock_ghz=MACHINES[name][0],
                peak_macs_per_cycle={"float32": float(MACHINES[name][1]), "float8_e4m3fn": 4.0 * MACHINES[name][1]},
                dram_bytes_per_cycle=MACHINES[name][2],
                energy_table="energy_45nm",
                assumptions=[
                    Assumption(what="clock", value=f"clock_ghz {MACHINES[name][0]}", source="assumed: a round number")
                ],
            )
            for name in machines
        ],
        "simulations": simulations,
        "provenance": Provenance(
            hwsim="0.1.0",
            code="commit 0123456789ab",
            created="2026-01-02T03:04:05Z",
            wall_s=12.5,
            versions={"python": "3.11.2", "torch": "2.6.0"},
            data={"mnist": "0" * 64},
            backends=["numba"],
            device="a processor, 2 cores",
        ),
    }
    return Results(**{**fields, **changes})


@pytest.fixture(scope="session")
def sample():
    return make_results()


@pytest.fixture(scope="session")
def build():
    return make_results


def make_section():
    measured = [5.0 * 1.35**i for i in range(24)]
    return Section(
        title="TPU GEMMs: simulated against measured",
        verdict="passed",
        text="One description of the machine, fitted on one half of the rows.\n\nThe other half was not looked at.",
        figures=[
            Figure(
                title="Simulated against measured time",
                identity=True,
                identity_band=0.1,
                x=Axis(label="measured time", unit="µs", scale="log"),
                y=Axis(label="simulated time", unit="µs", scale="log"),
                series=[
                    Series(
                        name="fitted half",
                        x=measured[::2],
                        y=[m * (1 + 0.04 * (-1) ** i) for i, m in enumerate(measured[::2])],
                        labels=[f"m={i}" for i in range(12)],
                    ),
                    Series(
                        name="held-out half",
                        x=measured[1::2],
                        y=[m * (1 + 0.07 * (-1) ** i) for i, m in enumerate(measured[1::2])],
                        labels=[f"m={i}" for i in range(12)],
                    ),
                ],
                caption="Dotted: equal. Gray: within 10 %.",
                source="SCALE-Sim-validation (MIT)",
            ),
            Figure(
                title="Error by regime",
                x=Axis(label="regime"),
                y=Axis(label="mean absolute error", percent=True),
                horizontal=True,
                series=[
                    Series(
                        name="hwsim",
                        style="bars",
                        x=["small", "medium", "large and very wide"],
                        y=[0.041, 0.067, 0.075],
                        low=[0.03, 0.06, 0.06],
                        high=[0.05, 0.08, 0.09],
                    )
                ],
                lines=[ReferenceLine(label="8 % gate", at=0.08)],
            ),
            Figure(
                title="Speed-up over k",
                x=Axis(label="k", scale="log"),
                y=Axis(label="speed-up", unit="×", scale="log"),
                series=[
                    Series(
                        name="measured, 2017",
                        style="line",
                        x=[8, 16, 32, 64, 128, 256, 512],
                        y=[36.8, 33.6, 27.5, 21.4, 14.5, 8.0, 4.4],
                    ),
                    Series(
                        name="simulated",
                        style="band",
                        x=[8, 16, 32, 64, 128, 256, 512],
                        y=[39, 33, 28, 20, 15, 8.1, 4.2],
                        low=[36, 31, 26, 19, 14, 7.8, 4],
                        high=[42, 35, 30, 22, 16, 8.4, 4.5],
                    ),
                ],
                lines=[ReferenceLine(label="break-even", at=1.0)],
            ),
        ],
        tables=[
            Table(
                title="Ours beside theirs",
                columns=[
                    Column(name="claim"),
                    Column(name="published", unit="%", kind="percent"),
                    Column(name="ours", kind="percent"),
                    Column(name="speed-up", kind="ratio"),
                    Column(name="verdict", kind="verdict"),
                ],
                rows=[
                    ["top-k 20, Adam", 0.9801, 0.9794, 21.4, "confirmed"],
                    ["top-k 10, AdaGrad", 0.98, None, None, "not comparable"],
                    ["hidden 20", 0.9577, 0.9640, 3.1, "not confirmed"],
                ],
                note="Mean of five seeds.",
                source="Sun et al., ICML 2017, Table 1",
            )
        ],
    )


@pytest.fixture(scope="session")
def section():
    return make_section()
