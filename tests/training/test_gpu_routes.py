"""What training does with tensors on a GPU, as far as it can be seen without one: routes between back ends."""

import copy

import pytest
import torch
from torch import nn

import hwsim
from hwsim import PrecisionPlan, UnsupportedError, kernels
from hwsim.kernels import backends
from hwsim.training import initial
from hwsim.training.emulation import emulate
from hwsim.training.initial import draw_initial_weights


@pytest.fixture
def on_gpu(monkeypatch):
    """Every tensor counts as one on a GPU; `found` says whether triton works there."""

    def pretend(found):
        monkeypatch.setattr(backends, "device_of", lambda x: "cuda")
        monkeypatch.setattr(backends, "missing", lambda name: "" if found or name != "triton" else "no CUDA device")

    return pretend


@pytest.mark.parametrize("found", [True, False])
def test_topk_of_a_gpu_tensor_is_selected_on_the_host(found, on_gpu):
    g = torch.randn(20, 30)
    wanted = {over: kernels.select_topk(g, 4, rank_over=over).indices for over in ("example", "batch")}
    on_gpu(found)
    backends.reset_used()
    for over, indices in wanted.items():
        assert (kernels.select_topk(g, 4, rank_over=over).indices == indices).all()
    assert backends.used() == ("numba",)


@pytest.mark.parametrize("format", ["mxfp8_e4m3", "nvfp4", "block(float8_e4m3fn, 16)"])
def test_block_formats_on_a_gpu_are_torchs_work(format, on_gpu):
    x = torch.randn(8, 64)
    wanted = hwsim.quantize(x, format)
    on_gpu(True)
    backends.reset_used()
    assert torch.equal(hwsim.quantize(x, format), wanted)
    assert backends.used() == ("torch",)


def test_a_gemm_that_no_back_end_there_can_do_is_refused_in_one_line(on_gpu):
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    on_gpu(False)
    with pytest.raises(UnsupportedError, match="torch back end has no accumulators") as refused:
        emulate(layer, PrecisionPlan.uniform("float8_e4m3fn", accumulator="bfloat16"))(x)
    assert "\n" not in str(refused.value)


def test_initial_weights_come_from_the_host(monkeypatch):
    network = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.LSTM(4, 3))
    twin = copy.deepcopy(network)
    draw_initial_weights(network, 3)
    before = torch.random.get_rng_state()
    initial._draw_on_host(twin, 3, "default")
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b in zip(network.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    drawn = []
    monkeypatch.setattr(initial, "_draw_on_host", lambda *given: drawn.append(given))
    draw_initial_weights(nn.Linear(2, 2, device="meta"), 3)
    assert len(drawn) == 1
