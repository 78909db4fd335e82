"""The proof that no GEMM escaped: a watch over everything that torch runs, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hwsim.errors import UnsupportedError

_GEMMS = """
    mm addmm _addmm_activation bmm baddbmm addbmm mv addmv dot vdot ger outer addr linear matmul einsum tensordot
    convolution _convolution convolution_overrideable convolution_backward _slow_conv2d_forward
    mkldnn_convolution mkldnn_linear mkldnn_rnn_layer mkldnn_rnn_layer_backward _nnpack_spatial_convolution
    cudnn_convolution cudnn_convolution_transpose miopen_convolution slow_conv3d slow_conv_transpose2d
    lstm gru rnn_tanh rnn_relu _cudnn_rnn _cudnn_rnn_backward _thnn_fused_lstm_cell lstm_cell gru_cell lstm_mps
    _native_multi_head_attention _transformer_encoder_layer_fwd
    _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_backward
    _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention_for_cpu_backward
    _scaled_dot_product_efficient_attention _scaled_dot_product_efficient_attention_backward
    _scaled_dot_product_cudnn_attention _scaled_dot_product_attention_math _fused_sdp_choice
    _flash_attention_forward _efficient_attention_forward _trilinear bilinear cdist _cdist_forward _cdist_backward
    _int_mm _scaled_mm _grouped_mm _sparse_mm _embedding_bag linalg_matmul linalg_multi_dot
    """
GEMM_NAMES = frozenset(_GEMMS.split())


class Auditor(TorchDispatchMode):
    """Refuses, while active, every GEMM that torch runs outside `allowed()`.

    With ``uncovered="float32"`` it lists them in `escaped` instead.
    """

    def __init__(self, uncovered: str = "error") -> None:
        super().__init__()
        self.uncovered = uncovered
        self.escaped: set[str] = set()
        self.seen = 0  # operations looked at, so that a test can tell a silent auditor from a sleeping one
        self._allowed = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Tell torch not to wrap what follows against its compiler: compiled modules are refused, and it costs time."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let the operation run if it is none of ours to emulate."""
        self.seen += 1
        name = func._schema.name.rpartition("::")[2]
        if name in GEMM_NAMES and not self._allowed:
            if self.uncovered == "error":
                raise UnsupportedError(
                    f"a GEMM escaped emulation: torch ran aten.{name} on {_shapes(args)}; "
                    "if that is wanted, set uncovered: float32 in the plan"
                )
            self.escaped.add(f"aten.{name}")
        return func(*args, **(kwargs or {}))

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Within it, GEMMs are ours: native float32 sums, which the plan asked for."""
        self._allowed += 1
        try:
            yield
        finally:
            self._allowed -= 1

    def run(self, function: Callable[..., torch.Tensor], *operands: Any, **options: Any) -> torch.Tensor:
        """Call a GEMM as one of ours: a kernel of hwsim (which may use BLAS where that is exact), or a native sum."""
        self._allowed += 1
        try:
            return function(*operands, **options)
        finally:
            self._allowed -= 1


def _shapes(args: tuple[Any, ...]) -> str:
    shapes = [" x ".join(map(str, a.shape)) or "scalar" for a in args if isinstance(a, torch.Tensor)]
    return " and ".join(shapes) or "no tensors"
