"""`order: accelerator` in a precision plan: training sums as the simulated machine does, so it must say how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hwsim.arithmetic.number import NumberFormat
from hwsim.errors import SpecError
from hwsim.hardware.accelerator import Accelerator
from hwsim.simulation.gemm_work import machine_order
from hwsim.training.plan import PrecisionPlan


def plan_on(plan: PrecisionPlan, machines: Sequence[Accelerator]) -> PrecisionPlan:
    """Return the plan with `order: accelerator` replaced by the order in which these machines all sum.

    A plan without that order is returned as it is. Training takes place once, whatever machines its steps are then
    simulated on, so machines that sum differently cannot all be right.

    Raises:
        SpecError: no machine is given, one of them has no single order, or they differ.
        UnsupportedError: a machine cannot multiply these formats.
    """
    if not plan.needs_machine:
        return plan
    if not machines:
        raise SpecError("order: accelerator: got no accelerator, expected one to take the order from; or name an order")

    found: dict[str, None] = {}

    def order_of(a: NumberFormat, b: NumberFormat) -> str:
        orders = {machine.name: machine_order(machine, a, b) for machine in machines}
        if len(set(orders.values())) > 1:
            differing = ", ".join(f"{order} on {name}" for name, order in orders.items())
            operands = str(a) if a == b else f"{a} x {b}"
            raise SpecError(
                f"order: accelerator: GEMMs of {operands} are summed {differing}; write an experiment for each of "
                "these machines, or name an order in the plan"
            )
        order = next(iter(orders.values()))
        found[order] = None
        return order

    resolved = plan.with_orders(order_of)
    names = " and ".join(machine.name for machine in machines)
    return replace(resolved, name=f"{plan.name}, summed as on {names}: {', '.join(found)}")
