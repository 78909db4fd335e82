"""Compile every Triton kernel for an H200 with the very calls that the suite makes, on a machine without any GPU.

Run in a process of its own, TRITON_INTERPRET unset: a stand-in for the driver names the target; launches only compile.
"""

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class NoDriver:
    """Says that the device is an sm_90 GPU; nothing is ever launched."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0


compiled = []
launch = JITFunction.run


def compile_only(self, *arguments, grid, warmup, **options):
    kernel = launch(self, *arguments, grid=grid, warmup=True, **options)
    compiled.append(self.fn.__name__)
    assert len(kernel.asm["cubin"]) > 1000
    return kernel


def main() -> None:
    driver.set_active(NoDriver())
    JITFunction.run = compile_only
    from hwsim.arithmetic.mac import parse_mac
    from hwsim.arithmetic.storage import Cast
    from hwsim.kernels.triton_gpu import gemm as emulated
    from hwsim.kernels.triton_gpu.quantize import cast_tensor
    from hwsim.measurement import triton_topk
    from hwsim.measurement.triton_gemm import gemm

    index = torch.arange(64, dtype=torch.int32)
    for dtype, tf32 in (
        (torch.bfloat16, False),
        (torch.float16, False),
        (torch.float32, True),
        (torch.float32, False),
        (torch.float8_e4m3fn, False),
    ):
        result = torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype
        for m, n, k in ((2048, 2048, 512), (512, 512, 256), (10, 512, 512)):
            gemm(torch.zeros(m, k).to(dtype), torch.zeros(k, n).to(dtype), torch.zeros(m, n).to(result), tf32)
        if dtype != torch.float8_e4m3fn:
            a, b = torch.zeros(512, 2048).to(dtype), torch.zeros(512, 2048).to(dtype)
            gemm(a.t(), b, torch.zeros(2048, 2048).to(result), tf32)
            gemm(a.t(), b, torch.zeros(2048, 2048).to(result), tf32, gather_m=index, scatter_m=True)
            gemm(a, torch.zeros(2048, 64).to(dtype), torch.zeros(512, 64).to(result), tf32, gather_k=index)
    cpu = torch.device("cpu")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        g = torch.zeros(1024, 8192).to(dtype)
        triton_topk.select_over_batch(g, 64, triton_topk.selection_scratch(1024, 8192, 64, cpu))
        triton_topk.select_over_batch(g[:10, :500].contiguous(), 20, triton_topk.selection_scratch(10, 500, 20, cpu))
        places, values = torch.zeros(64, 410, dtype=torch.int32), torch.zeros(64, 410).to(dtype)
        triton_topk.select_rows(g[:64], 410, places, values)
        triton_topk.rows_grad_input(places, values, torch.zeros(8192, 64).to(dtype), torch.zeros(64, 64).to(dtype))
        triton_topk.rows_grad_weight(places, values, torch.zeros(64, 64).to(dtype), torch.zeros(8192, 64))
    w = torch.zeros(64, 1024)
    triton_topk.adam(w, w, w, w, 3)
    triton_topk.adam(w, w, w, w, 3, index)
    a, b = torch.zeros(64, 96), torch.zeros(96, 64)
    stream = 0xFEDC_BA98_7654_3210
    for text in (
        "bfloat16",
        "fixed16.8 error",
        "bfloat16 stochastic8, order=chunked(64, float32)",
        "float16, order=kahan",
        "bfloat16 down, product=float8_e4m3fn stochastic4",
        "h200.float8_e4m3fn.float32.wgmma",
        "h200.float8_e5m2.float16.mma",
    ):
        emulated.matmul(a, b, parse_mac(text), None, None, stream)
    emulated.matmul(a, b, parse_mac("bfloat16"), torch.zeros(64, 64), torch.zeros(64), 5)
    for text in (
        "float8_e4m3fn",
        "float8_e5m2 stochastic",
        "fixed8.6 wrap",
        "float64 stochastic4",
        "int8",
        "float8_e8m0fnu",
    ):
        cast_tensor(torch.zeros(5000), Cast.parse(text), stream)
    print(f"{triton.__version__}: compiled {len(compiled)} kernels: {', '.join(sorted(set(compiled)))}")


if __name__ == "__main__":
    main()
