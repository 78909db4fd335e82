"""A hash of the sources behind generated code, part of every generated kernel's cache key.

numba's disk cache watches only the file in which a function stands; instructions emitted by another file could
change unseen.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

_SOURCES = (
    "vector_ir.py", "matmul_steps.py", "matmul_once.py", "matmul_random.py", "matmul_tile.py", "matmul_tree.py",
    "fused.py",
)  # fmt: skip


def _hash() -> str:
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()[:16]


REVISION = _hash()
