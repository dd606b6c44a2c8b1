"""The tables of docs/recipes.md, written from what the code checks: `python -m tierexport.report.reference docs/recipes.md`."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tierexport.formats.gguf import types as gguf
from tierexport.formats.torchao import types as torchao
from tierexport.model.roles import GROUPS, ROLES
from tierexport.quantize.grids import GGUF_GRIDS
from tierexport.recipe.choices import BITS
from tierexport.recipe.gates import FIDELITY_GATES, RETRIEVAL_GATES, STORED
from tierexport.recipe.schema import recipe_keys


def updated(page: str) -> str:
    """The page with every table between `<!-- NAME -->` and `<!-- /NAME -->` written anew."""
    for name, table in TABLES.items():
        page, found = re.subn(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", rf"\1{_joined(table())}\2", page, flags=re.S)
        if found != 1:
            raise ValueError(f"the page has {found} places for the table {name!r}, and has to have one")
    return page


def _joined(lines: Iterator[str]) -> str:
    return "".join(f"{line}\n" for line in lines).replace("\\", r"\\")


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(row) + " |"


def _keys() -> Iterator[str]:
    yield from _rows(
        ("key", "value", "default", ""),
        [(f"`{path}`", key.expected, key.default, key.meaning) for path, key in recipe_keys().items() if key.meaning],
    )


def _roles() -> Iterator[str]:
    grouped = {role for roles in GROUPS.values() for role in roles}
    rows = [(f"`{group}`", ", ".join(f"`{role}`" for role in roles)) for group, roles in GROUPS.items()]
    yield from _rows(("group", "roles"), [*rows, *(("", f"`{role}`") for role in ROLES if role not in grouped)])


def _gates() -> Iterator[str]:
    named = [("the sentences of the screen", FIDELITY_GATES), ("every retrieval set", tuple(RETRIEVAL_GATES))]
    yield from _rows(("measured on", "metrics"), [(where, ", ".join(f"`{each}`" for each in gates)) for where, gates in named])
    yield ""
    yield f"`{STORED}` before a metric: of the vectors as `[vectors]` stores them."


def _types() -> Iterator[str]:
    def first(bits: int) -> str:
        return ", or ".join(
            f"{name} where 256 divides the columns" * name.endswith("_K") or name for name in gguf.NATIVE_OF_BITS[bits]
        )

    rows = [(str(bits), first(bits), torchao.NATIVE_OF_BITS.get(bits, "")) for bits in BITS]
    yield from _rows(("bits", "GGUF", "torchao"), rows)
    others = [name for name in gguf.WRITABLE if name not in {each for names in gguf.NATIVE_OF_BITS.values() for each in names}]
    yield ""
    yield f"Other GGUF types that may be named: {', '.join(others)}. Error feedback serves {', '.join(GGUF_GRIDS)}."


TABLES: dict[str, Callable[[], Iterator[str]]] = {"keys": _keys, "roles": _roles, "gates": _gates, "types": _types}

if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(updated(path.read_text("utf-8")), "utf-8")
