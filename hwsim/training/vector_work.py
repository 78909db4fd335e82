"""How much work a vector unit has with each function: operations per element, forward and backward.

Counted from the usual formulas (see each row's comment where it is not plain); a transcendental function counts as one
`exponential`. They are the input of a cost model, not of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping

Work = Mapping[str, int]

NOTHING: Work = {}
DEFAULT: tuple[Work, Work] = ({"multiply": 1, "add": 1}, {"multiply": 1, "add": 1})

FUNCTIONS: Mapping[str, tuple[Work, Work]] = {
    "relu": ({"compare": 1}, {"compare": 1}),
    "threshold": ({"compare": 1}, {"compare": 1}),
    "leaky_relu": ({"compare": 1, "multiply": 1}, {"compare": 1, "multiply": 1}),
    "hardtanh": ({"compare": 2}, {"compare": 2}),
    "clamp": ({"compare": 2}, {"compare": 2}),
    "add": ({"add": 1}, NOTHING),
    "sub": ({"add": 1}, NOTHING),
    "mul": ({"multiply": 1}, {"multiply": 2}),
    "div": ({"divide": 1}, {"multiply": 2, "divide": 1}),
    "dropout": ({"multiply": 1}, {"multiply": 1}),
    "exp": ({"exponential": 1}, {"multiply": 1}),
    "log": ({"exponential": 1}, {"divide": 1}),
    "sqrt": ({"square_root": 1}, {"divide": 1, "multiply": 1}),
    "rsqrt": ({"square_root": 1, "divide": 1}, {"multiply": 3}),
    "tanh": ({"exponential": 1, "add": 2, "divide": 1}, {"multiply": 2, "add": 1}),
    "sigmoid": ({"exponential": 1, "add": 1, "divide": 1}, {"multiply": 2, "add": 1}),
    "silu": ({"exponential": 1, "add": 1, "divide": 1, "multiply": 1}, {"multiply": 4, "add": 2}),
    "gelu": ({"exponential": 1, "add": 1, "multiply": 3}, {"exponential": 1, "add": 2, "multiply": 5}),
    "softmax": ({"compare": 1, "exponential": 1, "add": 2, "divide": 1}, {"multiply": 2, "add": 2}),
    "log_softmax": ({"compare": 1, "exponential": 1, "add": 3}, {"exponential": 1, "multiply": 1, "add": 2}),
    "cross_entropy": ({"compare": 1, "exponential": 1, "add": 3}, {"exponential": 1, "add": 1, "multiply": 1}),
    "nll_loss": ({"add": 1}, {"multiply": 1}),
    "mse_loss": ({"add": 2, "multiply": 1}, {"multiply": 1, "add": 1}),
    "sum": ({"add": 1}, NOTHING),
    "mean": ({"add": 1}, {"multiply": 1}),
    # two passes for mean and variance, then scale and shift
    "layer_norm": ({"add": 4, "multiply": 3}, {"add": 5, "multiply": 6}),
    "group_norm": ({"add": 4, "multiply": 3}, {"add": 5, "multiply": 6}),
    "instance_norm": ({"add": 4, "multiply": 3}, {"add": 5, "multiply": 6}),
    "batch_norm": ({"add": 4, "multiply": 3}, {"add": 5, "multiply": 6}),
    "rms_norm": ({"add": 1, "multiply": 3}, {"add": 2, "multiply": 5}),
    "avg_pool2d": ({"add": 1}, {"multiply": 1}),
    "adaptive_avg_pool2d": ({"add": 1}, {"multiply": 1}),
    "max_pool2d": ({"compare": 1}, {"compare": 1}),
    "embedding": (NOTHING, {"add": 1}),
    "cat": (NOTHING, NOTHING),
    "split": (NOTHING, NOTHING),
    "lstm": ({"exponential": 5, "add": 9, "divide": 5, "multiply": 3}, {"multiply": 15, "add": 7}),  # four gates a unit
    "gru": ({"exponential": 3, "add": 9, "divide": 3, "multiply": 3}, {"multiply": 10, "add": 6}),
    "rnn_tanh": ({"exponential": 1, "add": 3, "divide": 1}, {"multiply": 2, "add": 1}),
    "rnn_relu": ({"add": 1, "compare": 1}, {"compare": 1}),
    "clone": (NOTHING, NOTHING),
    "__getitem__": (NOTHING, NOTHING),
}

ALIASES = {
    "__add__": "add",
    "__radd__": "add",
    "__iadd__": "add",
    "__sub__": "sub",
    "__rsub__": "sub",
    "__mul__": "mul",
    "__rmul__": "mul",
    "__imul__": "mul",
    "__truediv__": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "boolean_dispatch": "max_pool2d",
    "fn": "max_pool2d",
    "max_pool2d_with_indices": "max_pool2d",
    "relu6": "hardtanh",
    "hardswish": "silu",
    "concat": "cat",
    "stack": "cat",
}

# One element of a parameter in one update: what the formulas of `optimizer` compute.
UPDATES: Mapping[str, Work] = {
    "sgd": {"multiply": 1, "add": 1},
    "momentum": {"multiply": 2, "add": 2},
    "adagrad": {"multiply": 2, "add": 3, "square_root": 1, "divide": 1},
    "adam": {"multiply": 5, "add": 5, "square_root": 1, "divide": 2},
}


def work_of(name: str) -> tuple[Work, Work]:
    """Return the operations per element of a torch function by its name: forward, backward."""
    plain = name.rstrip("_") if not name.endswith("__") else name
    return FUNCTIONS.get(ALIASES.get(plain, plain), DEFAULT)
