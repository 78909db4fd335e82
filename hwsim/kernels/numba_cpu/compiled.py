"""How every CPU kernel is compiled: without the interpreter lock, cached on disk, no fast-math.

numba keeps compiled code beside the source; where that folder is read-only it takes the user's cache folder by itself.
Where neither can be written there is no cache and `cache_problem` says why (``hwsim doctor`` shows it).

numba asks only whether the file of the compiled function has changed, but that code contains functions of other files.
Here cached code belongs to one state of all files that kernels are made of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba

cache_problem = ""


def compiled(function: Callable[..., Any], error_model: str = "python", contract: bool = False) -> Any:
    """Compile a function on first call (`numba.njit`), releasing the interpreter lock, cached where possible.

    With ``error_model="numpy"`` a division by zero gives infinity or NaN; otherwise it raises, and that test keeps a
    loop with a division from becoming vector code. `contract` lets a product and a sum become one fused operation: only
    where no bits are promised.
    """
    global cache_problem  # noqa: PLW0603 (one note for the whole process)
    options: dict[str, Any] = {
        "nogil": True,
        "error_model": error_model,
        "fastmath": {"contract"} if contract else False,
    }
    try:
        dispatcher = numba.njit(cache=True, **options)(function)
    except RuntimeError as error:  # numba found no folder that it can write
        cache_problem = str(error)
        return numba.njit(**options)(function)
    index: Any = getattr(getattr(dispatcher, "_cache", None), "_cache_file", None)
    if hasattr(index, "_source_stamp"):
        index._source_stamp = (index._source_stamp, sources_stamp())
    return dispatcher


@cache
def sources_stamp() -> str:
    """Return a hash of the text of every file that compiled code may contain."""
    kernels = Path(__file__).parents[1]
    files = [kernels / "random_bits.py", *sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.blake2b(b"".join(f.read_bytes() for f in files), digest_size=16).hexdigest()
