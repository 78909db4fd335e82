"""How every CPU kernel is compiled: without the interpreter lock, cached on disk, no fast-math.

numba keeps compiled code beside the source; where that folder is read-only it takes the user's cache folder by itself.
Where neither can be written there is no cache and `cache_problem` says why (``hwsim doctor`` shows it).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

cache_problem = ""


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function on first call (`numba.njit`), releasing the interpreter lock, cached where possible."""
    global cache_problem  # noqa: PLW0603 (one note for the whole process)
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError as error:  # numba found no folder that it can write
        cache_problem = str(error)
        return numba.njit(nogil=True)(function)
