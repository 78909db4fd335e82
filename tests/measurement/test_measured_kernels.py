"""Every measured kernel computes the right thing (on this processor, Triton through its interpreter), and each check
can fail."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: its kernels then run as Python

from hwsim.measurement import dense_gemm, memory_ops, topk_gemm, training_step, worker
from hwsim.measurement.cases import cpu_cases, make
from hwsim.measurement.device import NoSensors
from hwsim.measurement.prepared import check_product
from hwsim.measurement.record import MeasurementError
from hwsim.measurement.timer import CpuClock

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
triton = pytest.importorskip("triton")

LAYER = {"batch": 6, "out": 40, "inputs": 24}
SMALL = [
    # Triton's interpreter multiplies bfloat16 wrongly (it takes the bits for integers), so float16 stands for 16 bits
    # here.
    *[
        make("dense_gemm", gemm, kernel, dtype, "t", m=20, n=24, k=36)
        for gemm in ("output", "grad_input", "grad_weight")
        for kernel, dtype in (("blas", "float32"), ("blas", "bfloat16"), ("triton", "float32"), ("triton", "float16"))
    ],
    *[make("dense_gemm", "output", "triton", "tf32", "t", m=5, n=9, k=17)],
    *[
        make("topk_backward", operation, "dense", "float32", "t", **LAYER)
        for operation in ("backward", "backward_with_zeros")
    ],
    *[
        make("topk_backward", operation, kernel, dtype, "t", **LAYER, kept=7)
        for dtype in ("float32", "float16")
        for operation, kernel in (
            ("backward", "torch"),
            ("backward", "triton"),
            ("select_batch", "torch"),
            ("select_batch", "triton"),
            ("gather", "torch"),
            ("grad_input", "cublas"),
            ("grad_weight", "cublas"),
            ("scatter", "torch"),
            ("grad_input", "triton_gather"),
            ("grad_weight", "triton_gather"),
        )
    ],
    *[
        make("topk_backward", operation, kernel, "float32", "t", **LAYER, kept=5)
        for operation, kernel in (
            ("select_example", "torch"),
            ("select_example", "triton"),
            ("grad_input_example", "triton_rows"),
            ("grad_weight_example", "triton_rows"),
            ("grad_input_example", "masked_dense"),
            ("grad_weight_example", "masked_dense"),
            ("grad_input_example", "torch_sparse"),
            ("grad_weight_example", "torch_sparse"),
        )
    ],
    make("topk_backward", "backward", "triton", "float32", "t", **LAYER, kept=40),
    make("topk_backward", "backward", "torch", "float32", "t", **LAYER, kept=1),
    *[
        make("memory", operation, "torch", dtype, "t", n=4096)
        for dtype in ("float32", "bfloat16")
        for operation in ("add", "relu_grad", "column_sum", "transpose", "fill")
    ],
    make("memory", "copy", "torch", "uint8", "t", n=1000),
    make("memory", "cast_float8_e4m3fn", "torch", "bfloat16", "t", n=4096),
    make("memory", "cast_bfloat16", "torch", "float32", "t", n=4096),
    *[make("optimizer", "adam", kernel, "float32", "t", out=12, inputs=20) for kernel in ("torch_fused", "triton")],
    make("optimizer", "sgd", "torch", "float32", "t", out=12, inputs=20),
    make("optimizer", "adam_rows", "triton", "float32", "t", out=12, inputs=20, kept=3),
    *[
        make("training_step", "adam", "eager", dtype, "t", hidden=24, depth=2, batch=6, kept=kept)
        for kept in (0, 5)
        for dtype in ("float32", "bfloat16")
    ],
    make("training_step", "adam_rows", "eager", "float32", "t", hidden=24, depth=3, batch=6, kept=5),
    *[
        make(
            "convolution",
            gemm,
            "cudnn",
            "float32",
            "t",
            batch=2,
            channels=3,
            size=9,
            out_channels=4,
            filter=3,
            stride=2,
        )
        for gemm in ("output", "grad_input", "grad_weight")
    ],
    make("launch", "empty", "torch", "uint8", "t", n=1),
    make("emulation", "quantize_stochastic", "triton", "float8_e4m3fn", "t", n=8192),
    make("emulation", "matmul_mac", "triton", "bfloat16", "t", m=6, n=8, k=256),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_the_kernel_passes_its_check(case):
    prepared = worker.prepare(case, DEVICE)
    check = prepared.check()
    assert check.passed, check
    assert prepared.flops >= 0 and prepared.bytes > 0


def test_the_families_of_the_processor_s_own_suite_are_all_tried_here():
    assert {case.family for case in cpu_cases()} <= {case.family for case in SMALL}


def test_repeated_calls_give_the_same_selection():
    """The arrival counter of the fused selection must be back at zero after every call."""
    from hwsim.measurement.triton_topk import select_over_batch, selection_scratch

    g = torch.randn((130, 200), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    scratch = selection_scratch(130, 200, 9, DEVICE)
    assert len(scratch["partial"]) == 2
    first = select_over_batch(g, 9, scratch).clone()
    assert torch.equal(first, select_over_batch(g, 9, scratch))
    assert torch.equal(first.cpu(), topk_gemm.reference_select(g.cpu(), 9))


def test_selection_breaks_ties_to_the_lowest_position_and_never_keeps_zeros():
    from hwsim.measurement.triton_topk import select_over_batch, select_rows, selection_scratch

    g = torch.tensor([[1.0, -2.0, 0.0, 2.0, 2.0, 1.0], [1.0, 2.0, 0.0, -2.0, 2.0, 1.0]]).to(DEVICE)
    for kept, wanted in ((2, [1, 3]), (3, [1, 3, 4]), (4, [0, 1, 3, 4]), (5, [0, 1, 3, 4, 5])):
        assert select_over_batch(g, kept, selection_scratch(2, 6, kept, DEVICE)).tolist() == wanted
        assert topk_gemm.reference_select(g, kept).tolist() == wanted
    scratch = selection_scratch(2, 6, 6, DEVICE)
    select_over_batch(g, 6, scratch)
    assert int(scratch["count"]) == 5 and scratch["index"][:5].tolist() == [0, 1, 3, 4, 5]
    index, values = torch.full((2, 6), -1, dtype=torch.int32, device=DEVICE), torch.full((2, 6), 9.0, device=DEVICE)
    select_rows(g, 6, index, values)
    assert index.tolist() == [[0, 1, 3, 4, 5, 0]] * 2
    assert values.tolist() == [[1, -2, 2, 2, 1, 0], [1, 2, -2, 2, 1, 0]]


@pytest.mark.parametrize("wrong", ["one element", "not written", "transposed", "not finite"])
def test_the_check_of_a_product_sees(wrong):
    source = torch.Generator().manual_seed(1)
    a, b = torch.randn((70, 33), generator=source), torch.randn((33, 70), generator=source)
    right = a @ b
    assert check_product(right, a, b, "float32").passed
    spoiled = right.clone()
    if wrong == "one element":
        spoiled[0, 69] *= 1.01
    elif wrong == "not written":
        spoiled[31, 31] = float("nan")
    elif wrong == "transposed":
        spoiled = spoiled.t().contiguous()
    else:
        spoiled[69, 0] = float("inf")
    assert not check_product(spoiled, a, b, "float32").passed


@pytest.mark.parametrize(
    "case",
    [
        make("topk_backward", "select_batch", "torch", "float32", "t", **LAYER, kept=7),
        make("topk_backward", "scatter", "torch", "float32", "t", **LAYER, kept=7),
        make("topk_backward", "backward", "torch", "float32", "t", **LAYER, kept=7),
        make("training_step", "adam", "eager", "float32", "t", hidden=24, depth=2, batch=6, kept=5),
    ],
    ids=lambda case: case.id,
)
def test_a_wrong_selection_is_seen(case, monkeypatch):
    """Keep the smallest instead of the largest, or write the rows somewhere else: the check turns red."""
    if case.operation == "scatter":
        monkeypatch.setattr(torch.Tensor, "index_copy_", lambda self, *_: self)
    elif case.family == "training_step":
        step = training_step.Network.step

        def swapped(self):
            step(self)
            self.layers[0].chosen = (self.layers[0].chosen + 1) % 24

        monkeypatch.setattr(training_step.Network, "step", swapped)
    else:
        monkeypatch.setattr(topk_gemm, "torch_select", lambda g, kept: g.abs().sum(0).argsort()[:kept].sort().values)
    assert not worker.prepare(case, DEVICE).check().passed


def test_a_wrong_kernel_is_refused_before_it_is_timed(monkeypatch):
    case = make("dense_gemm", "output", "blas", "float32", "t", m=8, n=8, k=8)
    monkeypatch.setattr(torch, "mm", lambda a, b, out: out.fill_(1.0))

    class NoStopwatch(CpuClock):
        def cold(self, call, samples):
            raise AssertionError("a wrong kernel was timed")

    with pytest.raises(MeasurementError, match="wrong result"):
        worker.run_case(case, DEVICE, NoStopwatch(), NoSensors(), None, "c")


def test_the_work_of_a_gemm_is_counted():
    prepared = dense_gemm.prepare(make("dense_gemm", "output", "blas", "bfloat16", "t", m=3, n=5, k=7), DEVICE)
    assert prepared.flops == 2 * 3 * 5 * 7
    assert prepared.bytes == 2 * (3 * 7 + 7 * 5 + 3 * 5)


def test_a_row_sparse_update_moves_only_its_rows():
    case = make("optimizer", "adam_rows", "triton", "float32", "t", out=12, inputs=20, kept=3)
    dense = make("optimizer", "adam", "triton", "float32", "t", out=12, inputs=20)
    sparse_bytes, dense_bytes = (memory_ops.prepare_optimizer(c, DEVICE).bytes for c in (case, dense))
    assert sparse_bytes == 28 * 3 * 20 + 12 and dense_bytes == 28 * 12 * 20
