"""Tables for the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from tierexport.records import FormatPlan, Plan, Tensor

COLOURS = {2: "red", 3: "red", 4: "yellow", 5: "yellow", 6: "green", 8: "green", 16: "cyan", 32: "blue"}
"""Warm is crushed, cold is kept: the same colours wherever tiers are shown."""


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
    table.add_row(f"{len(kept)} norms, biases, tables", "kept", "", "kept", "32", types, "", f"{sum(r.bytes for r in kept):,}", "")
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
            [str(verdict["tokens_equal"]).lower(), *(f"{verdict[key]:.5f}" for key in ("cos_mean", "cos_min"))]
            + [f"{verdict['top10_retention']:.3f}"]
            if verdict["status"] == "ok"
            else [f"[red]{verdict['status']}[/]", "", "", ""]
        )
        table.add_row(
            artifact["format"], artifact["path"], f"{artifact['bytes'] / 1e6:.2f}",
            f"{artifact['nominal_bits']:.2f}", f"{artifact['stored_bits']:.2f}", *shown,
        )  # fmt: skip
    return table


def layers_table(title: str, tensors: Iterable[tuple[Tensor, str, int]]) -> Table:
    """Types by layer and role, as stored in any file: the map that `inspect` shows."""
    cells: dict[tuple[int, str], dict[str, int]] = {}
    for tensor, native, size in tensors:
        if tensor.role == "kept":
            continue
        place = (-1 if tensor.layer is None else tensor.layer, tensor.role)
        cells.setdefault(place, {}).setdefault(native, 0)
        cells[place][native] += size
    roles = list(dict.fromkeys(role for layer, role in sorted(cells) if layer >= 0))
    table = _table(title, "layer", *roles, right=("layer",))
    for layer in sorted({layer for layer, _ in cells if layer >= 0}):
        table.add_row(str(layer), *(" ".join(cells.get((layer, role), {})) for role in roles))
    for (layer, role), natives in sorted(cells.items()):
        if layer < 0:
            table.add_row("", f"{role}: {' '.join(natives)}")
    return table
