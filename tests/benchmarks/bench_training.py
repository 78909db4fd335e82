"""What emulation costs: one training step against plain float32 torch with the same optimizer, on one thread.

Each ratio is of processor time, the best of several interleaved runs within this process, so that other work on the
machine disturbs little, and both sides alike. Steps are forward, loss, backward and Adam's update on made-up images of
MNIST's and CIFAR-10's sizes.

Memory (Linux) is what a step takes on top of what its process held before: each side is a process of its own, which
first makes two steps with 8 images, so that all is loaded and compiled, then sets its high-water mark back and makes
three steps. The process' own peak is beside it: it holds torch, and for emulation numba and compiled kernels too.

    python tests/benchmarks/bench_training.py [--resnet]
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.nn import functional

import hwsim
from hwsim import PrecisionPlan
from hwsim.training.emulation import emulate
from hwsim.training.gradient_buffers import GradientBuffers
from hwsim.training.loop import AUDIT_STEPS
from hwsim.training.optimizer import Optimizer
from hwsim.training.recipe import Recipe

ROUNDS = 7
FP8 = "FP8, bfloat16 accumulator"
MEMORY_AIM = 2.0  # times plain torch

PLANS: dict[str, tuple[PrecisionPlan | str, float]] = {  # and the ratio aimed at, at batch 64
    "float32, native order": ("float32", 1.5),
    "every tensor quantized, native sums": (
        PrecisionPlan.uniform("float8_e4m3fn", "float8_e5m2", "float32", overflow="saturate", order="native"),
        1.5,
    ),
    FP8: (
        PrecisionPlan.uniform("float8_e4m3fn", "float8_e5m2", "bfloat16", overflow="saturate", loss_scale=1024.0),
        3.0,
    ),
    "bfloat16, bfloat16 accumulator": (PrecisionPlan.uniform("bfloat16", accumulator="bfloat16"), 6.0),
    "8-bit fixed, saturating 20-bit accumulator": (
        PrecisionPlan.uniform("fixed8.6", accumulator="fixed20.12", overflow="saturate"),
        3.0,
    ),
}


def plain_step(network: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Return one step as torch does it."""
    optimizer = torch.optim.Adam(network.parameters())

    def step() -> None:
        functional.cross_entropy(network(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def emulated_step(network: nn.Module, plan: PrecisionPlan | str, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Return one step as the training loop does it, auditor and all."""
    emulation = emulate(network, plan)
    emulation.audit_every = AUDIT_STEPS
    optimizer = Optimizer(network, emulation.step.plan, Recipe())
    optimizer.buffers = emulation.step.buffers = GradientBuffers()

    def step() -> None:
        with emulation:
            loss = functional.cross_entropy(network(x), y)
            loss.backward(gradient=torch.tensor(optimizer.loss_scale.factor))
        optimizer.update(0.001)

    return step


def seconds(step: Callable[[], None], repeats: int) -> float:
    """Return the time of one step, the best of `repeats`: other work on the machine spares some of them."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        step()
        best = min(best, time.process_time() - start)
    return best


def compare(
    title: str, name: str, batch: int, shape: tuple[int, ...], repeats: int, plans: list[str], aim: float | None = None
) -> None:
    """Print the ratios of one network at one batch size."""
    x, y = torch.rand(batch, *shape), torch.randint(0, 10, (batch,))
    x *= torch.rand(batch, *shape) < 0.2 if len(shape) == 1 else 1  # MNIST's share of dark pixels
    steps = {"plain": plain_step(hwsim.load_model(name), x, y)}
    steps |= {plan: emulated_step(hwsim.load_model(name), PLANS[plan][0], x, y) for plan in plans}
    for step in steps.values():
        step()
        step()
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(ROUNDS):
        for key, step in steps.items():
            best[key] = min(best[key], seconds(step, repeats))
    print(f"{title}: plain torch {best['plain'] * 1e3:.2f} ms a step", flush=True)
    for plan in plans:
        wanted = aim or PLANS[plan][1]
        print(
            f"  {plan:44s} {best[plan] * 1e3:8.2f} ms {best[plan] / best['plain']:6.2f}x   (aim {wanted}x)",
            flush=True,
        )


def resnet_step(plan: str, batch: int) -> Callable[[], None]:
    """Return one step of ResNet-20 on made-up images; plan "plain" is torch itself."""
    x, y = torch.rand(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    network = hwsim.load_model("resnet20_cifar10")
    return plain_step(network, x, y) if plan == "plain" else emulated_step(network, PLANS[plan][0], x, y)


def print_peak(plan: str, batch: int) -> None:
    """Print the MiB that a step takes on top of what this process holds at rest, and the process' peak."""
    warm = resnet_step(plan, 8)
    warm()
    warm()
    del warm
    step = resnet_step(plan, batch)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets VmHWM back to VmRSS
    rest = memory_mib("VmRSS")
    for _ in range(3):
        step()
    peak = memory_mib("VmHWM")
    print(peak - rest, peak)


def memory_mib(entry: str) -> float:
    """Return an entry of this process' status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{entry}:"))


def compare_memory(batch: int, plans: list[str]) -> None:
    """Print what a step of ResNet-20 takes, each plan in a process of its own."""
    found = {}
    for plan in ("plain", *plans):
        command = [sys.executable, __file__, "--peak", plan, str(batch)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[plan] = tuple(float(word) for word in printed.split())
    (taken, peak), aim = found["plain"], f"(aim {MEMORY_AIM:.0f}x)"
    print(f"ResNet-20, batch {batch}, memory: plain torch {taken:.0f} MiB a step, process {peak:.0f} MiB")
    for plan in plans:
        ours, whole = found[plan]
        print(f"  {plan:44s} {ours:8.0f} MiB {ours / taken:6.2f}x   {aim}, process {whole:.0f} MiB {whole / peak:.2f}x")


def main() -> None:
    """Print a table of ratios."""
    torch.set_num_threads(1)
    if "--peak" in sys.argv:
        print_peak(sys.argv[-2], int(sys.argv[-1]))
        return
    for batch, repeats, note in ((10, 20, " (aim for FP8: 4x)"), (64, 10, "")):
        compare(
            f"784-500-500-10, batch {batch}{note}",
            "mlp_mnist",
            batch,
            (784,),
            repeats,
            list(PLANS),
        )
    if "--resnet" in sys.argv:
        compare("ResNet-20, batch 128", "resnet20_cifar10", 128, (3, 32, 32), 1, [FP8], aim=6.0)
        compare_memory(128, [FP8, "float32, native order"])


if __name__ == "__main__":
    main()
