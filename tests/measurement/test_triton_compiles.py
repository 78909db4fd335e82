"""Every Triton kernel compiles for an H200, which the interpreter cannot show; no GPU is needed for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
def test_every_kernel_compiles_for_an_h200(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)  # nothing compiled earlier may answer for it
    program = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("_gemm", "_select_over_batch", "_rows_grad_weight", "_adam", "_quantize", "_matmul", "_fused_matmul"):
        assert name in done.stdout
