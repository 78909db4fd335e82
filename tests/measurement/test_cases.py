"""The list of cases: no repetition, the question first, shapes that the kernels accept, a sample that fills its
space."""

import math
import subprocess
import sys
from collections import Counter

import pytest

from hwsim.measurement.cases import (
    TABLE7_KEPT,
    cpu_cases,
    cuda_cases,
    families,
    fits_fp8,
    gemm_axes,
    layer_gemms,
    make,
    sample_shapes,
)


@pytest.mark.parametrize("cases", [cuda_cases(), cpu_cases()], ids=["cuda", "cpu"])
def test_every_case_has_a_name_of_its_own(cases):
    assert max(Counter(case.id for case in cases).values()) == 1


def test_the_paper_s_table_comes_within_the_first_hundred_cases():
    first = {case.id for case in cuda_cases()[:100]}
    for kept in TABLE7_KEPT:
        assert f"topk_backward/backward/torch/float32/batch1024_out8192_inputs8192_kept{kept}" in first
        assert f"topk_backward/backward/triton/bfloat16/batch1024_out8192_inputs8192_kept{kept}" in first
    assert "topk_backward/backward/dense/float32/batch1024_out8192_inputs8192" in first


def test_the_list_covers_what_was_asked_for():
    cases = cuda_cases()
    dense = [case for case in cases if case.family == "dense_gemm"]
    assert {case.operation for case in dense} == {"output", "grad_input", "grad_weight"}
    assert {case.dtype for case in dense} == {"float32", "tf32", "bfloat16", "float16", "float8_e4m3fn"}
    assert len([case for case in dense if case.group == "sample"]) >= 300
    assert {"mlp", "table7", "table8", "resnet", "llm", "sample", "edge", "energy"} <= {case.group for case in cases}
    topk = {(case.operation, case.kernel) for case in cases if case.family == "topk_backward"}
    assert {("select_batch", "triton"), ("gather", "torch"), ("grad_input", "triton_gather"), ("scatter", "torch"),
            ("grad_input_example", "triton_rows"), ("grad_weight_example", "torch_sparse"),
            ("grad_input_2to4", "sparse_2to4"), ("backward_with_zeros", "dense")} <= topk  # fmt: skip
    steps = {(case.operation, case.kernel, case["kept"] > 0) for case in cases if case.family == "training_step"}
    assert {
        ("adam", "eager", False),
        ("adam", "graph", False),
        ("adam", "graph", True),
        ("adam_rows", "graph", True),
    } <= steps
    assert families(cases)[0] == "launch"


def test_eight_bit_floats_are_asked_only_for_shapes_they_take():
    for case in cuda_cases():
        if case.family == "dense_gemm" and case.dtype.startswith("float8"):
            assert fits_fp8(size for _, size in case.shape), case.id
    assert not list(layer_gemms(500, 784, 10, ["float8_e4m3fn"], "mlp"))


def test_the_axes_of_the_three_gemms():
    assert gemm_axes("output", 10, 500, 784) == {"m": 10, "n": 500, "k": 784}
    assert gemm_axes("grad_input", 10, 500, 784) == {"m": 10, "n": 784, "k": 500}
    assert gemm_axes("grad_weight", 10, 500, 784) == {"m": 500, "n": 784, "k": 10}


def test_the_sample_is_spread_evenly_and_within_its_limit():
    shapes = list(sample_shapes(200))
    assert len(set(shapes)) > 190
    assert all(2 * math.prod(shape) <= 4e12 for shape in shapes)
    for axis in range(3):  # each third of the logarithmic range holds about a third of the points
        thirds = Counter(min(2, int((math.log2(max(16, shape[axis])) - 4) / (10 / 3))) for shape in shapes)
        assert min(thirds.values()) > 40, thirds


def test_energy_is_a_case_of_its_own():
    quick = make("memory", "copy", "torch", "uint8", "memory", n=4)
    slow = make("memory", "copy", "torch", "uint8", "memory", True, n=4)
    assert quick.id != slow.id
    assert sum(case.energy for case in cuda_cases()) * 3 < 150  # seconds: fits a slice


def test_the_list_needs_neither_torch_nor_numpy():
    heavy = ("torch", "numpy", "pydantic", "triton", "typer")
    code = f"import sys; from hwsim.measurement import suite; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
