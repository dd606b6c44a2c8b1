"""Which of tierexport's own code a module's results depend on: itself and all that it imports, directly or not."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from tierexport.base.digests import file_digest, value_digest

PACKAGE = Path(__file__).parents[1]


@functools.cache
def code_of(*names: str) -> tuple[Path, ...]:
    """The files of modules ("tierexport.pipeline") and of every module of tierexport that they import, wherever in the file."""
    found: set[Path] = set()
    waiting = [path for name in names for path in _files(name)]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [each for name in _imports(path) for each in _files(name)]
    return tuple(sorted(found))


@functools.cache
def digest_of(*names: str) -> str:
    """SHA-256 over that code, in hex."""
    return value_digest({path.relative_to(PACKAGE).as_posix(): file_digest(path) for path in code_of(*names)})


def _files(name: str) -> Iterator[Path]:
    """The file of a module, or of the module that has a name; nothing for what is not tierexport's."""
    top, *parts = name.split(".")
    if top != PACKAGE.name:
        return
    for length in (len(parts), len(parts) - 1):
        place = PACKAGE.joinpath(*parts[:length])
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if length > 0 and path.is_file():
                yield path
                return


def _imports(path: Path) -> Iterator[str]:
    """What a file imports; of `from a import b` that is a.b, which may be a module or something in a."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{each.name}" for each in node.names)
