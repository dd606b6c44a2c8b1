"""Functions compiled by numba, and kept in tierexport's cache for one state of the code."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from tierexport.base.codebase import digest_of
from tierexport.base.paths import cache_dir

F = TypeVar("F", bound=Callable[..., Any])


def compiler(code: str, allowed: Collection[str]) -> Callable[[F], F]:
    """What compiles a function by numba, to one that holds no lock while it runs, and is kept for this state of `code`, the
    module that imports all that is compiled with it.

    numba's own rule looks at the file of the function alone, and would keep what calls an older one of another file.
    `allowed`: what may be done to floating-point arithmetic, by LLVM's fast-math flags.
    """

    def compiled(function: F) -> F:
        config: Any = numba.config
        before = config.CACHE_DIR
        config.CACHE_DIR = str(Path(before or cache_dir() / "compiled") / digest_of(code)[:16])
        try:
            made: Any = numba.njit(nogil=True, cache=True, fastmath=set(allowed), error_model="numpy")(function)
        finally:
            config.CACHE_DIR = before
        return cast("F", made)

    return compiled
