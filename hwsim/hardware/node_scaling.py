"""How energy and area change from one process node to another.

Stillmaker & Baas, "Scaling equations for the accurate prediction of CMOS device performance from 180 nm to 7 nm",
Integration 58 (2017): a polynomial of the supply voltage for the energy of a gate at each node, and a table of areas.
The coefficients were read from two public implementations of the paper that agree with each other, not from the paper.
Simulated gates scale better than published arithmetic does (a factor of 18 against 3 to 4 from 45 to 7 nm), which is
why the 7 nm table uses these equations for its low ends only.
"""

from __future__ import annotations

from hwsim.errors import SpecError

# node (nm): energy of a gate in arbitrary units = a V^2 + b V + c
_ENERGY: dict[int, tuple[float, float, float]] = {
    65: (3.755, -4.398, 1.975),
    45: (1.103, -0.362, 0.2767),
    32: (0.9559, -0.7823, 0.471),
    20: (0.373, -0.1582, 0.04104),
    16: (0.2958, -0.1241, 0.03024),
    14: (0.2363, -0.09675, 0.02239),
    10: (0.2068, -0.09311, 0.02375),
    7: (0.1776, -0.09097, 0.02447),
}

# node (nm): area relative to 45 nm
_AREA: dict[int, float] = {65: 1.5, 45: 1.0, 32: 0.46, 20: 0.21, 16: 0.19, 14: 0.17, 10: 0.1, 7: 0.059}


def energy_factor(from_nm: int, from_v: float, to_nm: int, to_v: float) -> float:
    """Energy of a gate at one node and supply over its energy at another.

    Raises:
        SpecError: the equations do not cover a node.
    """
    return _gate_energy(to_nm, to_v) / _gate_energy(from_nm, from_v)


def area_factor(from_nm: int, to_nm: int) -> float:
    """Area of a gate at node `to_nm` over its area at `from_nm`.

    Raises:
        SpecError: the table does not cover a node.
    """
    for node in (from_nm, to_nm):
        _check(node)
    return _AREA[to_nm] / _AREA[from_nm]


def _gate_energy(node_nm: int, supply_v: float) -> float:
    _check(node_nm)
    a, b, c = _ENERGY[node_nm]
    return (a * supply_v + b) * supply_v + c


def _check(node_nm: int) -> None:
    if node_nm not in _ENERGY:
        known = ", ".join(str(node) for node in _ENERGY)
        raise SpecError(f"node_nm: got {node_nm}, expected one of {known}")
