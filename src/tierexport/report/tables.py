"""Tables for the terminal."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from tierexport.inspection import Inspection
from tierexport.records import FormatPlan, Plan, Tensor
from tierexport.roles import ROLES

COLOURS = {2: "red", 3: "red", 4: "yellow", 5: "yellow", 6: "green", 8: "green", 16: "cyan", 32: "blue"}
"""Warm is crushed, cold is kept: the same colours wherever tiers are shown."""


_PROOF = ("cos_mean", "cos_min", "top10_retention")


def _table(title: str, *columns: str, right: Iterable[str] = ()) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=column in right)
    return table


def plan_table(plan: FormatPlan) -> Table:
    """Every tensor that is not kept, with its tier and type; the kept ones in one row."""
    table = _table(
        plan.format, "tensor", "role", "layer", "tier", "bits", "type", "shape", "bytes", "",
        right=("layer", "bits", "bytes"),
    )  # fmt: skip
    kept = [row for row in plan.rows if row.tensor.role == "kept"]
    for row in plan.rows:
        if row.tensor.role == "kept":
            continue
        colour = COLOURS[row.tier.bits]
        table.add_row(
            row.tensor.name, row.tensor.role, "" if row.tensor.layer is None else str(row.tensor.layer), row.tier.name,
            f"[{colour}]{row.tier.bits}[/]", f"[{colour}]{row.type}[/]", "×".join(map(str, row.tensor.shape)),
            f"{row.bytes:,}", row.note,
        )  # fmt: skip
    types = ", ".join(sorted({row.type for row in kept}))
    table.add_row(
        f"{len(kept)} norms, biases, tables", "kept", "", "kept", "32", types, "", f"{sum(r.bytes for r in kept):,}", ""
    )
    return table


def totals_table(plan: Plan) -> Table:
    """One row per format: parameters, bytes, nominal and stored bits of the tensors."""
    names = ("format", "parameters", "tensor bytes", "nominal bits", "stored bits")
    table = _table("totals", *names, right=names[1:])
    for fmt in plan.formats:
        table.add_row(fmt.format, f"{fmt.parameters:,}", f"{fmt.bytes:,}", f"{fmt.nominal_bits:.2f}", f"{fmt.stored_bits:.2f}")
    return table


def build_table(manifest: Mapping[str, Any], verdicts: Sequence[Mapping[str, Any]]) -> Table:
    """What a build made: size and fidelity of each artifact."""
    names = ("format", "file", "MB", "nominal bits", "stored bits", "tokens equal", "cos mean", "cos min", "top-10 kept")
    table = _table(f"{manifest['model']['name']} · {manifest['recipe']['name']}", *names, right=names[2:])
    judged = {verdict["format"]: verdict for verdict in verdicts}
    for artifact in manifest["artifacts"]:
        verdict = judged[artifact["format"]]
        shown = (
            (str(verdict["tokens_equal"]).lower(), *(f"{verdict[key]:.5f}" for key in _PROOF))
            if verdict["status"] == "ok"
            else (f"[red]{verdict['status']}[/]", "", "", "")
        )
        table.add_row(
            artifact["format"], artifact["path"], f"{artifact['bytes'] / 1e6:.2f}",
            f"{artifact['nominal_bits']:.2f}", f"{artifact['stored_bits']:.2f}", *shown,
        )  # fmt: skip
    return table


def inspection_parts(found: Inspection) -> Iterator[Table | str]:
    """What `inspect` shows of one artifact: the map of types by layer, metadata, warnings."""
    sizes = f"{found.bytes:,} bytes, {found.parameters:,} parameters, {found.stored_bits:.2f} stored bits"
    yield _layer_map(f"{found.path}\n{found.format}: {sizes}", found.tensors)
    for key, value in found.metadata.items():
        if not isinstance(value, list) and not key.startswith("general.dataset."):
            yield f"  {key} = {value}"
    for warning in found.warnings:
        yield f"  [yellow]warning:[/] {warning}"


def _layer_map(title: str, tensors: Iterable[tuple[Tensor, str, int]]) -> Table:
    """Rows are layers, columns roles, cells the types stored there; below them what has no layer."""
    cells: dict[tuple[int | None, str], list[str]] = {}
    for tensor, native, _ in tensors:
        if tensor.role != "kept":
            cells.setdefault((tensor.layer, tensor.role), []).append(native)
    roles = [role for role in ROLES if any(layer is not None and role == each for layer, each in cells)]
    table = _table(title, "layer", *roles)
    for layer in sorted({layer for layer, _ in cells if layer is not None}):
        table.add_row(str(layer), *(_types(cells.get((layer, role), [])) for role in roles))
    for (place, role), natives in cells.items():
        if place is None:
            table.add_row(role, _types(natives))
    return table


def _types(natives: Sequence[str]) -> str:
    return " ".join(f"[{COLOURS[bits_of(native)]}]{native}[/]" for native in dict.fromkeys(natives))


def bits_of(native: str) -> int:
    """The nominal bits of a native type's name: the digits of IQ4_NL, Q8_0, int4, F16, BF16, float32."""
    bits = int(re.sub(r"\D*(\d+).*", r"\1", native))
    return min(COLOURS, key=lambda each: abs(each - bits))
