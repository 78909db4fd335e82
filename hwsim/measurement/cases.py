"""Which kernels are measured, on which shapes, and in which order: a list of values, made without torch.

The order is the order of worth: what a short session must bring home comes first, so that a suite stopped at any point
leaves the most useful file that its time could buy. The same list is used to say what is still missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

DENSE_DTYPES = ("bfloat16", "float32", "tf32", "float16", "float8_e4m3fn")
GEMMS = ("output", "grad_input", "grad_weight")
TABLE7_KEPT = (8, 16, 32, 64, 128, 256, 512)  # meProp, arXiv 1706.06197, tables 7 and 8
WIDE_KEPT = (*TABLE7_KEPT, 1024, 2048, 4096, 8192)
MNIST_LAYERS = ((500, 784), (500, 500), (10, 500))  # (out, in)
HIDDEN = (500, 512, 1024, 2048, 4096, 8192)
BATCHES = (10, 50, 256, 1024, 4096)
LLM_LAYERS = (  # (out, in); published model configurations
    ("llama3_8b_qkv", 6144, 4096),
    ("llama3_8b_o", 4096, 4096),
    ("llama3_8b_gate_up", 28672, 4096),
    ("llama3_8b_down", 4096, 14336),
    ("gpt2_qkv", 2304, 768),
    ("gpt2_o", 768, 768),
    ("gpt2_up", 3072, 768),
    ("gpt2_down", 768, 3072),
)
RESNET50 = (  # (in channels, input size, out channels, kernel, stride) of the distinct convolutions
    (3, 224, 64, 7, 2),
    (64, 56, 64, 1, 1),
    (64, 56, 64, 3, 1),
    (64, 56, 256, 1, 1),
    (256, 56, 128, 1, 1),
    (128, 56, 128, 3, 2),
    (128, 28, 128, 3, 1),
    (128, 28, 512, 1, 1),
    (256, 56, 512, 1, 2),
    (512, 28, 256, 1, 1),
    (256, 28, 256, 3, 2),
    (256, 14, 256, 3, 1),
    (256, 14, 1024, 1, 1),
    (1024, 14, 512, 1, 1),
    (512, 14, 512, 3, 2),
    (512, 7, 512, 3, 1),
    (512, 7, 2048, 1, 1),
    (2048, 7, 512, 1, 1),
)


@dataclass(frozen=True)
class Case:
    """One thing to measure. Two cases with the same id are the same case."""

    family: str  # launch memory optimizer dense_gemm convolution topk_backward training_step emulation
    operation: str
    kernel: str
    dtype: str
    shape: tuple[tuple[str, int], ...]
    group: str
    energy: bool = False  # also read the energy counter over a loop of 2 s

    @property
    def id(self) -> str:
        """Stable name: family/operation/kernel/dtype/axes, and "energy" for the one that reads the counter."""
        axes = "_".join(f"{name}{size}" for name, size in self.shape)
        parts = (self.family, self.operation, self.kernel, self.dtype, axes)
        return "/".join((*parts, "energy") if self.energy else parts)

    def __getitem__(self, axis: str) -> int:
        """Return the size of `axis`; raises KeyError for one that this case does not have."""
        return dict(self.shape)[axis]

    @property
    def needs_triton(self) -> bool:
        """True if the kernel is written in Triton."""
        return self.kernel.startswith("triton") or self.family == "emulation"


def make(family: str, operation: str, kernel: str, dtype: str, group: str, energy: bool = False, **axes: int) -> Case:
    """Build a case from named axes."""
    return Case(family, operation, kernel, dtype, tuple(axes.items()), group, energy)


def gemm_axes(gemm: str, batch: int, out: int, inputs: int) -> dict[str, int]:
    """Axes m, n, k of one of a linear layer's GEMMs (k reduced)."""
    if gemm == "output":
        return {"m": batch, "n": out, "k": inputs}
    if gemm == "grad_input":
        return {"m": batch, "n": inputs, "k": out}
    return {"m": out, "n": inputs, "k": batch}


def fits_fp8(axes: Iterable[int]) -> bool:
    """FP8 library kernels take multiples of 16 only."""
    return all(size % 16 == 0 for size in axes)


def layer_gemms(
    out: int, inputs: int, batch: int, dtypes: Iterable[str], group: str, kernel: str = "cublas", energy: bool = False
) -> Iterator[Case]:
    """The three GEMMs of a linear layer in each dtype that can do them."""
    for dtype in dtypes:
        for gemm in GEMMS:
            axes = gemm_axes(gemm, batch, out, inputs)
            if dtype.startswith("float8") and not fits_fp8(axes.values()):
                continue
            yield make("dense_gemm", gemm, kernel, dtype, group, energy, **axes)


def launch_cases() -> Iterator[Case]:
    """What an empty call costs: to be known before anything else."""
    yield make("launch", "empty", "torch", "uint8", "launch", n=1)


def memory_cases(sizes: Iterable[int], dtypes: Iterable[str] = ("float32", "bfloat16")) -> Iterator[Case]:
    """Operations limited by memory: n elements each, matrices of 1024 columns where an axis matters."""
    for n in sizes:
        yield make("memory", "copy", "torch", "uint8", "memory", n=4 * n)
        for dtype in dtypes:
            for operation in ("add", "relu_grad", "column_sum", "transpose", "fill"):
                yield make("memory", operation, "torch", dtype, "memory", n=n)
        yield make("memory", "cast_float8_e4m3fn", "torch", "bfloat16", "memory", n=n)
        yield make("memory", "cast_bfloat16", "torch", "float32", "memory", n=n)


def optimizer_cases(layers: Iterable[tuple[int, int]], kept: Iterable[int]) -> Iterator[Case]:
    """Updates of a weight of `out` rows: all rows, or only the kept ones."""
    for out, inputs in layers:
        yield make("optimizer", "adam", "torch_fused", "float32", "optimizer", out=out, inputs=inputs)
        yield make("optimizer", "adam", "triton", "float32", "optimizer", out=out, inputs=inputs)
        yield make("optimizer", "sgd", "torch", "float32", "optimizer", out=out, inputs=inputs)
        for count in kept:
            if count <= out:
                yield make(
                    "optimizer", "adam_rows", "triton", "float32", "optimizer", out=out, inputs=inputs, kept=count
                )


TOPK_PARTS = (  # (operation, kernel): the parts of unified top-k backward, and the whole of it
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


def topk_cases(
    out: int,
    inputs: int,
    batch: int,
    kept: Iterable[int],
    dtypes: Iterable[str],
    group: str,
    parts: Iterable[tuple[str, str]] = TOPK_PARTS,
    energy: bool = False,
) -> Iterator[Case]:
    """Unified top-k backward of one linear layer: whole and in parts, with its dense rivals."""
    axes = {"batch": batch, "out": out, "inputs": inputs}
    parts = tuple(parts)
    for dtype in dtypes:
        for operation in ("backward", "backward_with_zeros"):
            yield make("topk_backward", operation, "dense", dtype, group, energy and operation == "backward", **axes)
        for count in kept:
            if count > out:
                continue
            for operation, kernel in parts:
                whole = energy and operation == "backward"
                yield make("topk_backward", operation, kernel, dtype, group, whole, **axes, kept=count)


def example_cases(out: int, inputs: int, batch: int, kept: Iterable[int], dtype: str, group: str) -> Iterator[Case]:
    """Top-k per example, where every row keeps its own positions: gathered rows, and the sparse and masked
    baselines."""
    axes = {"batch": batch, "out": out, "inputs": inputs}
    for count in kept:
        for operation, kernel in (
            ("select_example", "torch"),
            ("select_example", "triton"),
            ("grad_input_example", "triton_rows"),
            ("grad_weight_example", "triton_rows"),
            ("grad_input_example", "masked_dense"),
            ("grad_weight_example", "masked_dense"),
            ("grad_input_example", "torch_sparse"),
            ("grad_weight_example", "torch_sparse"),
        ):
            yield make("topk_backward", operation, kernel, dtype, group, **axes, kept=count)  # type: ignore[arg-type]


def structured_cases(out: int, inputs: int, batch: int) -> Iterator[Case]:
    """2:4 structured sparsity of the gradient: always half of the positions, so no k."""
    yield make(
        "topk_backward", "grad_input_2to4", "sparse_2to4", "bfloat16", "structured", batch=batch, out=out, inputs=inputs
    )


def step_cases(
    hidden: int, batch: int, kept: Iterable[int], dtype: str, group: str, depth: int = 2, rows: bool = False
) -> Iterator[Case]:
    """A whole training step of a 784-h-...-10 network; kept 0 is the dense step. `rows`: row-sparse Adam as well."""
    for count in (0, *kept):
        for kernel in ("eager", "graph"):
            yield make(
                "training_step", "adam", kernel, dtype, group, hidden=hidden, depth=depth, batch=batch, kept=count
            )
            if rows and count:
                yield make(
                    "training_step",
                    "adam_rows",
                    kernel,
                    dtype,
                    group,
                    hidden=hidden,
                    depth=depth,
                    batch=batch,
                    kept=count,
                )


def convolution_cases(
    batch: int, dtype: str, layers: Iterable[tuple[int, int, int, int, int]] = RESNET50
) -> Iterator[Case]:
    """Each pass of each distinct convolution of ResNet-50."""
    for channels, size, out_channels, kernel, stride in layers:
        for gemm in GEMMS:
            if gemm == "grad_input" and channels == 3:
                continue  # the first layer has no grad_input
            yield make(
                "convolution",
                gemm,
                "cudnn",
                dtype,
                "resnet",
                batch=batch,
                channels=channels,
                size=size,
                out_channels=out_channels,
                filter=kernel,
                stride=stride,
            )


def sample_shapes(count: int, limit_flops: float = 4e12) -> Iterator[tuple[int, int, int]]:
    """`count` GEMM shapes that fill log space evenly: an additive recurrence in three dimensions.

    Three of four shapes are multiples of 16, the fourth is as it falls; shapes above `limit_flops` are passed over.
    """
    root = 1.2207440846057596  # the real root of x^4 = x + 1, which spreads best in three dimensions
    steps = [root**-axis for axis in (1, 2, 3)]
    made = index = 0
    while made < count:
        index += 1
        place = [(0.5 + index * step) % 1.0 for step in steps]
        sizes = [2 ** (4 + 10 * share) for share in place]  # 16 ... 16384
        shape = tuple(max(16, round(size / 16) * 16) if made % 4 else max(1, round(size)) for size in sizes)
        if 2 * math.prod(shape) <= limit_flops:
            made += 1
            yield shape[0], shape[1], shape[2]


def sample_cases(count: int) -> Iterator[Case]:
    """A space-filling sample of dense GEMMs over dtypes and the three kinds of transposes."""
    for index, (m, n, k) in enumerate(sample_shapes(count)):
        gemm = GEMMS[index % 3]
        dtype = DENSE_DTYPES[(index // 3) % 5]
        if dtype.startswith("float8") and not fits_fp8((m, n, k)):
            dtype = "bfloat16"
        yield make("dense_gemm", gemm, "cublas", dtype, "sample", m=m, n=n, k=k)


def edge_cases() -> Iterator[Case]:
    """Shapes at the borders: single rows and columns, primes, long reductions."""
    shapes = (
        (1, 1, 1),
        (1, 8192, 8192),
        (8192, 1, 8192),
        (8192, 8192, 1),
        (16, 16, 65536),
        (127, 509, 1021),
        (4095, 4097, 4099),
        (8192, 8192, 16),
        (65536, 16, 16),
        (16, 65536, 16),
        (3, 5, 7),
        (257, 257, 257),
    )
    for m, n, k in shapes:
        for gemm in GEMMS:
            for dtype in ("bfloat16", "float32"):
                yield make("dense_gemm", gemm, "cublas", dtype, "edge", m=m, n=n, k=k)


def triton_dense_cases() -> Iterator[Case]:
    """Our own Triton GEMM beside the library's, on a few layers."""
    for out, inputs, batch in ((8192, 8192, 1024), (4096, 4096, 4096), (512, 512, 256)):
        for dtype in ("bfloat16", "float16", "tf32", "float32", "float8_e4m3fn"):
            yield from layer_gemms(out, inputs, batch, [dtype], "triton", kernel="triton")


def emulation_cases() -> Iterator[Case]:
    """The emulation kernels: values rounded as another machine would, checked bit for bit against the reference."""
    for target in ("float8_e4m3fn", "float8_e5m2", "bfloat16", "fixed8.6"):
        for rounding in ("nearest_even", "stochastic"):
            yield make("emulation", f"quantize_{rounding}", "triton", target, "emulation", n=1 << 26)
    for accumulator in ("bfloat16", "float16", "float32", "fixed16.8"):
        yield make("emulation", "matmul_mac", "triton", accumulator, "emulation", m=512, n=512, k=512)


def cuda_cases() -> list[Case]:
    """Everything to measure on a GPU, the most valuable first, without repetition."""
    wide = {"out": 8192, "inputs": 8192, "batch": 1024}
    ordered: list[Iterable[Case]] = [
        launch_cases(),
        memory_cases([1 << 26], ["float32"]),
        # the question itself: dense and top-k backward at the paper's size, dense GEMMs of all kinds there
        layer_gemms(**wide, dtypes=DENSE_DTYPES, group="table7"),  # type: ignore[arg-type]
        topk_cases(**wide, kept=TABLE7_KEPT, dtypes=["float32", "bfloat16"], group="table7", parts=TOPK_PARTS[:2]),  # type: ignore[arg-type]
        step_cases(500, 10, [20], "float32", "mlp"),
        step_cases(8192, 1024, TABLE7_KEPT, "float32", "table8"),
        # dense GEMMs of the meProp networks and of language models
        *[layer_gemms(h, h, batch, DENSE_DTYPES, "mlp") for batch in BATCHES for h in HIDDEN],
        *[
            layer_gemms(out, inputs, batch, ["bfloat16", "float32"], "mlp")
            for batch in (10, 50, 1024)
            for out, inputs in MNIST_LAYERS
        ],
        *[layer_gemms(out, inputs, 2048, ["bfloat16", "float8_e4m3fn"], "llm") for _, out, inputs in LLM_LAYERS],
        # the parts of top-k backward
        topk_cases(**wide, kept=WIDE_KEPT, dtypes=["bfloat16"], group="table7"),  # type: ignore[arg-type]
        memory_cases([1 << 14, 1 << 18, 1 << 22, 1 << 28]),
        optimizer_cases([(500, 784), (4096, 4096), (8192, 8192)], [20, 64, 512, 2048, 8192]),
        sample_cases(120),
        energy_cases(),
        *[
            topk_cases(h, h, batch, [max(1, h // 100), h // 25, h // 10, h // 4, h // 2, h], ["bfloat16"], "mlp")
            for h, batch in ((500, 10), (500, 256), (2048, 256), (4096, 1024))
        ],
        *[
            example_cases(h, h, batch, kept, "bfloat16", "example")
            for h, batch, kept in ((500, 10, (20, 80)), (2048, 256, (20, 102)), (8192, 1024, (64, 410)))
        ],
        structured_cases(4096, 4096, 1024),
        structured_cases(8192, 8192, 1024),
        step_cases(500, 10, [10, 40, 80], "bfloat16", "mlp", rows=True),
        step_cases(500, 50, [25, 30], "float32", "mlp"),
        step_cases(2048, 256, [20, 82, 205], "bfloat16", "mlp", rows=True),
        step_cases(8192, 1024, [64, 512], "bfloat16", "table8", rows=True),
        step_cases(500, 50, [50], "float32", "mlp", depth=5),
        triton_dense_cases(),
        emulation_cases(),
        convolution_cases(32, "bfloat16"),
        convolution_cases(32, "tf32"),
        edge_cases(),
        *[
            layer_gemms(out, inputs, tokens, ["bfloat16", "float8_e4m3fn", "float16"], "llm")
            for tokens in (512, 8192)
            for _, out, inputs in LLM_LAYERS
        ],
        topk_cases(**wide, kept=WIDE_KEPT, dtypes=["float32", "float16"], group="table7"),  # type: ignore[arg-type]
        sample_cases(400),
    ]
    return unique(case for cases in ordered for case in cases)


def energy_cases() -> Iterator[Case]:
    """The chosen subset with energy: about 3 s each."""
    for dtype in ("bfloat16", "float8_e4m3fn", "tf32", "float32"):
        yield from layer_gemms(8192, 8192, 1024, [dtype], "energy", energy=True)
    yield from layer_gemms(4096, 4096, 256, ["bfloat16"], "energy", energy=True)
    yield from layer_gemms(512, 512, 4096, ["bfloat16"], "energy", energy=True)
    yield from topk_cases(8192, 8192, 1024, (64, 512, 2048), ["bfloat16"], "energy", TOPK_PARTS[:2], energy=True)
    yield make("memory", "copy", "torch", "uint8", "energy", True, n=1 << 28)
    yield make("memory", "add", "torch", "float32", "energy", True, n=1 << 26)


def cpu_cases() -> list[Case]:
    """The same method on the user's own processor: dense and unified top-k through torch, sizes of some
    milliseconds."""
    parts = [part for part in TOPK_PARTS if not part[1].startswith("triton")]
    ordered: list[Iterable[Case]] = [
        launch_cases(),
        layer_gemms(500, 784, 10, ["float32"], "mlp", kernel="blas"),
        topk_cases(500, 784, 10, (20, 80, 500), ["float32"], "mlp", parts),
        step_cases(500, 10, [20], "float32", "mlp"),
        *[
            layer_gemms(h, h, batch, ["float32", "bfloat16"], "mlp", kernel="blas")
            for h in (500, 1024)
            for batch in (50, 256)
        ],
        topk_cases(1024, 1024, 256, (10, 41, 102, 256, 512, 1024), ["float32"], "mlp", parts),
        memory_cases([1 << 18, 1 << 22], ["float32"]),
    ]
    cases = [case for case in unique(c for cs in ordered for c in cs) if case.kernel not in ("graph", "triton")]
    return [
        Case(c.family, c.operation, "blas" if c.kernel == "cublas" else c.kernel, c.dtype, c.shape, c.group)
        for c in cases
    ]


def unique(cases: Iterable[Case]) -> list[Case]:
    """Drop repetitions, keeping the first place."""
    kept: dict[str, Case] = {}
    for case in cases:
        kept.setdefault(case.id, case)
    return list(kept.values())


def families(cases: Iterable[Case]) -> list[str]:
    """The families that occur, in order."""
    return list(dict.fromkeys(case.family for case in cases))
