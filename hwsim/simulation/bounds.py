"""What no schedule can beat, and what other tools say: rooflines, compulsory traffic, SCALE-Sim's closed forms."""

from __future__ import annotations

from hwsim.errors import SpecError
from hwsim.hardware.accelerator import Accelerator
from hwsim.hardware.mapping import DATAFLOWS, GemmWork, ceil_div
from hwsim.hardware.mapping_cost import chip_elements, unit_depth
from hwsim.simulation.lowering import ticks_at
from hwsim.simulation.topology import LinearShape, Shape


def compulsory_bytes(work: GemmWork) -> int:
    """Bytes that must cross the DRAM pins once: operands and results that are not on chip, without rounding."""
    whole = (work.m, work.n, work.k)
    operands = [(work.operand(name), chip_elements(work, name, whole)) for name in "abc"]
    return work.groups * sum(operand.bytes_of(elements) for operand, elements in operands if not operand.on_chip)


def array_bound_ticks(work: GemmWork, machine: Accelerator) -> int:
    """Ticks of streaming alone in the best dataflow that the machine offers: folds without fill, drain or waiting."""
    arrays = machine.arrays
    depth, step = unit_depth(arrays, work.rate)
    flows = DATAFLOWS if arrays.dataflow == "any" else (arrays.dataflow,)
    rows, cols, count = arrays.rows, arrays.cols, arrays.count
    ticks = {
        "output_stationary": ceil_div(work.m, rows) * ceil_div(work.n, cols) * ceil_div(work.k, depth),
        "weight_stationary": ceil_div(work.k, rows * depth) * ceil_div(work.n, cols) * work.m,
        "input_stationary": ceil_div(work.k, rows * depth) * ceil_div(work.m, cols) * work.n,
    }
    best = min(ticks[flow] for flow in flows) * work.groups * step
    return int(best * work.fed / count)


def bound_ticks(work: GemmWork, machine: Accelerator) -> int:
    """Ticks that no mapping of this GEMM can beat on an idle machine: streaming, or compulsory traffic."""
    return max(array_bound_ticks(work, machine), ticks_at(compulsory_bytes(work), machine.dram_bytes_per_cycle))


# ---- SCALE-Sim, for conformance


def gemm_of(layer: Shape, batch: int = 1) -> tuple[int, int, int]:
    """M, N, K as SCALE-Sim lowers a layer: output pixels x filters x window."""
    if isinstance(layer, LinearShape):
        return batch * layer.rows, layer.outputs, layer.inputs
    height, width = layer.out_size
    return batch * height * width, layer.filters, layer.channels * layer.kernel[0] * layer.kernel[1]


def scale_sim_cycles(m: int, n: int, k: int, rows: int, cols: int, dataflow: str) -> int:
    """SCALE-Sim's compute cycles of a GEMM without a bandwidth limit (v3, its own counting from cycle 0).

    Agreement with it is conformance of the systolic timing, not accuracy: every fold fills and drains separately.
    Source: the closed forms found equal to its output on 78 GEMMs and 66 convolutions.

    Raises:
        SpecError: no such dataflow.
    """
    match dataflow:
        case "output_stationary":
            return ceil_div(m, rows) * ceil_div(n, cols) * (k + rows + cols - 2) - 1
        case "weight_stationary":
            return ceil_div(k, rows) * ceil_div(n, cols) * (m + 2 * rows + cols - 2) - 1
        case "input_stationary":
            return ceil_div(k, rows) * ceil_div(m, cols) * (n + 2 * rows + cols - 2) - 1
    raise SpecError(f"dataflow: got {dataflow!r}, expected {', '.join(DATAFLOWS)}")


def scale_sim_layer_cycles(layer: Shape, rows: int, cols: int, dataflow: str) -> int:
    """`scale_sim_cycles` of a layer of one image; build convolutions with `round_up=True` to size them as it does."""
    return scale_sim_cycles(*gemm_of(layer), rows, cols, dataflow)
