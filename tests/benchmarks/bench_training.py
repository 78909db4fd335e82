"""What emulation costs: one training step against plain float32 torch with the same optimizer, on one thread.

Each ratio is of the best of several interleaved runs within this process, so that other work on the machine disturbs
both sides alike. Steps are forward, loss, backward and Adam's update on made-up images of MNIST's and CIFAR-10's sizes.

    python tests/benchmarks/bench_training.py [--resnet]
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

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

PLANS: dict[str, tuple[PrecisionPlan | str, float]] = {  # and the ratio aimed at, at batch 64
    "float32, native order": ("float32", 1.5),
    "every tensor quantized, native sums": (
        PrecisionPlan.uniform("float8_e4m3fn", "float8_e5m2", "float32", overflow="saturate", order="native"),
        1.5,
    ),
    "FP8, bfloat16 accumulator": (
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
        start = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - start)
    return best


def compare(title: str, name: str, batch: int, shape: tuple[int, ...], repeats: int, plans: list[str]) -> None:
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
        print(
            f"  {plan:44s} {best[plan] * 1e3:8.2f} ms {best[plan] / best['plain']:6.2f}x   (aim {PLANS[plan][1]}x)",
            flush=True,
        )


def main() -> None:
    """Print a table of ratios."""
    torch.set_num_threads(1)
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
        fp8 = ["FP8, bfloat16 accumulator"]
        compare("ResNet-20, batch 128 (aim 6x)", "resnet20_cifar10", 128, (3, 32, 32), 1, fp8)


if __name__ == "__main__":
    main()
