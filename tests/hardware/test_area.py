"""Area: what the shipped files state is what the estimate gives, and equal area is equal."""

from __future__ import annotations

import pytest

from hwsim.arithmetic.mac import MacSpec
from hwsim.catalog import load_accelerator
from hwsim.errors import SpecError
from hwsim.hardware.area import area_mm2
from hwsim.hardware.energy import load_energy_table
from hwsim.hardware.price import total

TRAINERS = ("on_device_trainer", "meprop_trainer", "dense_trainer")


@pytest.mark.parametrize("name", TRAINERS)
def test_stated_areas_are_the_estimate(name):
    machine = load_accelerator(name)
    stated = {item.component: item.mm2 for item in machine.area}
    estimated = {component: price.nominal for component, price in area_mm2(machine, "bfloat16").items()}
    assert stated == pytest.approx(estimated, abs=1e-4)


def test_the_meprop_trainer_and_its_rival_are_equally_large():
    whole = [total(area_mm2(load_accelerator(name), "bfloat16").values()).nominal for name in TRAINERS[1:]]
    assert whole[1] == pytest.approx(whole[0], rel=0.01)
    machines = [load_accelerator(name) for name in TRAINERS[1:]]
    assert machines[0].power == machines[1].power
    assert machines[0].select is not None and machines[1].select is None


def test_a_wider_machine_is_larger():
    machine = load_accelerator("on_device_trainer")
    narrow, wide = (total(area_mm2(machine, name).values()) for name in ("bfloat16", "float32"))
    assert narrow.nominal < wide.nominal
    assert narrow.low < narrow.nominal < narrow.high
    cheap = area_mm2(machine, "bfloat16", MacSpec("bfloat16"))
    assert cheap["arrays"].nominal < area_mm2(machine, "bfloat16")["arrays"].nominal


def test_a_table_without_areas_is_refused():
    table = load_energy_table("energy_45nm").model_copy(update={"area": None})
    with pytest.raises(SpecError, match="no area prices"):
        area_mm2(load_accelerator("on_device_trainer"), "bfloat16", table=table)
