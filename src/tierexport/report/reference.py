"""The tables of docs/recipes.md, written from what the code checks: `python -m tierexport.report.reference docs/recipes.md`."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tierexport.base.errors import PlanError
from tierexport.base.records import Tensor
from tierexport.formats import all_formats
from tierexport.formats.protocol import Format
from tierexport.model.roles import GROUPS, ROLES
from tierexport.recipe.choices import BITS
from tierexport.recipe.gates import FIDELITY_GATES, RETRIEVAL_GATES, STORED
from tierexport.recipe.schema import Tier, recipe_keys

WIDE, NARROW = (Tensor("a matrix", "ffn_up", 0, (256, columns)) for columns in (256, 128))
"""Matrices that stand for those whose columns 256 divides, and for the others."""


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
    formats = all_formats()
    rows = [(str(bits), *(_becomes(fmt, bits) for fmt in formats)) for bits in BITS]
    yield from _rows(("bits", *(fmt.name for fmt in formats)), rows)
    for fmt in formats:
        fed_back = ", ".join(native for native in fmt.native_types if fmt.takes_feedback(WIDE, native))
        yield ""
        yield f"In {fmt.name} a recipe may name {', '.join(fmt.native_types)}. Error feedback serves {fed_back or 'none'}."


def _becomes(fmt: Format, bits: int) -> str:
    """What a tier of so many bits becomes in a format, for a matrix of many columns and for one of few."""
    wide, narrow = (_native(fmt, matrix, bits) for matrix in (WIDE, NARROW))
    if wide == narrow:
        return wide
    return f"{wide} where {WIDE.shape[-1]} divides the columns" + (f", or {narrow}" if narrow else "")


def _native(fmt: Format, matrix: Tensor, bits: int) -> str:
    """The native type of a matrix in a tier of so many bits; "" where there is none."""
    try:
        return fmt.native_type(matrix, Tier("a", bits))[0]
    except PlanError:
        return ""


TABLES: dict[str, Callable[[], Iterator[str]]] = {"keys": _keys, "roles": _roles, "gates": _gates, "types": _types}

if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(updated(path.read_text("utf-8")), "utf-8")
