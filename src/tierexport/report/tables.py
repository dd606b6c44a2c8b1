"""Tables for the terminal."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from tierexport.comparison import Compared
from tierexport.inspection import Inspection
from tierexport.records import FormatPlan, Plan, Tensor
from tierexport.roles import ROLES
from tierexport.search.found import Found, Frontier
from tierexport.search.layer_map import ModelMap
from tierexport.verdicts import Fidelity, Verification

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
        plan.format, "tensor", "role", "layer", "tier", "bits", "type", "rounding", "shape", "bytes", "",
        right=("layer", "bits", "bytes"),
    )  # fmt: skip
    kept = [row for row in plan.rows if row.tensor.role == "kept"]
    for row in plan.rows:
        if row.tensor.role == "kept":
            continue
        colour = COLOURS[row.tier.bits]
        table.add_row(
            row.tensor.name, row.tensor.role, "" if row.tensor.layer is None else str(row.tensor.layer), row.tier.name,
            f"[{colour}]{row.tier.bits}[/]", f"[{colour}]{row.type}[/]", row.rounding, "×".join(map(str, row.tensor.shape)),
            f"{row.bytes:,}", row.note,
        )  # fmt: skip
    types = ", ".join(sorted({row.type for row in kept}))
    table.add_row(
        f"{len(kept)} norms, biases, tables", "kept", "", "kept", "32", types, "", "", f"{sum(r.bytes for r in kept):,}", ""
    )
    return table


def totals_table(plan: Plan) -> Table:
    """One row per format: parameters, bytes, nominal and stored bits of the tensors."""
    names = ("format", "parameters", "tensor bytes", "nominal bits", "stored bits")
    table = _table("totals", *names, right=names[1:])
    for fmt in plan.formats:
        table.add_row(fmt.format, f"{fmt.parameters:,}", f"{fmt.bytes:,}", f"{fmt.nominal_bits:.2f}", f"{fmt.stored_bits:.2f}")
    return table


def sizes_table(manifest: Mapping[str, Any]) -> Table:
    """What a build made: bytes and bits of each artifact."""
    names = ("format", "file", "MB", "nominal bits", "stored bits")
    table = _table(f"{manifest['model']['name']} · {manifest['recipe']['name']}", *names, right=names[2:])
    for artifact in manifest["artifacts"]:
        bits = (f"{artifact[key]:.2f}" for key in ("nominal_bits", "stored_bits"))
        table.add_row(artifact["format"], artifact["path"], f"{artifact['bytes'] / 1e6:.2f}", *bits)
    return table


def verification_tables(found: Verification) -> Iterator[Table]:
    """Fidelity of each artifact on each device, retrieval, sentence similarity, gates."""
    yield _fidelity_table(found)
    if any(verdict.retrieval for verdict in found.verdicts):
        yield _retrieval_table(found)
    if any(verdict.sts for verdict in found.verdicts):
        yield _sts_table(found)
    if found.gates:
        yield _gates_table(found)


def _fidelity_table(found: Verification) -> Table:
    names = ("format", "device", "same tokens", "cos mean", "cos p1", "cos min", "top-10 kept", "95 % interval",
             "rank corr.", "texts/s", "fp32's")  # fmt: skip
    table = _table(f"against {found.reference}", *names, right=names[2:])
    for verdict in found.verdicts:
        if verdict.fidelity is None:
            colour = "red" if verdict.status == "failed" else "dim"
            table.add_row(verdict.format, verdict.device, f"[{colour}]{verdict.status}[/]")
            continue
        speeds = (verdict.texts_per_second, verdict.reference_texts_per_second)
        table.add_row(
            verdict.format, verdict.device, f"{verdict.tokens_share:.1%}", *_fidelity_cells(verdict.fidelity),
            *(f"{each:.0f}" if each else "" for each in speeds),
        )  # fmt: skip
        if verdict.same_tokens:
            table.add_row(verdict.format, verdict.device, "only these", *_fidelity_cells(verdict.same_tokens))
    return table


def _fidelity_cells(fidelity: Fidelity) -> Iterator[str]:
    yield from (f"{each:.5f}" for each in (fidelity.cos_mean, fidelity.cos_p1, fidelity.cos_min))
    yield from (f"{fidelity.top10_retention:.4f}", "{:.4f} to {:.4f}".format(*fidelity.top10_ci))
    yield f"{fidelity.rank_correlation:.5f}"


def _retrieval_table(found: Verification) -> Table:
    names = ("set", "format", "device", "same tokens", "NDCG@10", "fp32's", "difference", "95 % interval", "p",
             "Recall@10", "fp32's", "MRR@10")  # fmt: skip
    table = _table("retrieval", *names, right=names[3:])
    for verdict in found.verdicts:
        for each in verdict.retrieval_shown:
            table.add_row(
                each.dataset, verdict.format, verdict.device, f"{each.tokens_equal:.1%}", f"{each.ndcg_at_10:.4f}",
                f"{each.reference_ndcg_at_10:.4f}", f"{each.delta:+.4f}", f"{each.ci_low:+.4f} to {each.ci_high:+.4f}",
                f"{each.p_value:.3f}", f"{each.recall_at_10:.4f}", f"{each.reference_recall_at_10:.4f}",
                f"{each.mrr_at_10:.4f}",
            )  # fmt: skip
    return table


def _sts_table(found: Verification) -> Table:
    names = ("pairs", "format", "device", "Spearman", "fp32's", "difference", "95 % interval")
    table = _table("sentence similarity", *names, right=names[3:])
    for verdict in found.verdicts:
        if each := verdict.sts:
            table.add_row(
                each.dataset, verdict.format, verdict.device, f"{each.spearman:.4f}", f"{each.reference_spearman:.4f}",
                f"{each.delta:+.4f}", f"{each.ci_low:+.4f} to {each.ci_high:+.4f}",
            )  # fmt: skip
    return table


def _gates_table(found: Verification) -> Table:
    table = _table("gates", "gate", "format", "device", "value", "passed", right=("value",))
    for gate in found.gates:
        shown = "[green]yes[/]" if gate.passed else "[red]no[/]"
        table.add_row(gate.name, gate.format, gate.device, "not measured" if gate.value is None else f"{gate.value:.5f}", shown)
    return table


def compare_table(compared: Sequence[Compared]) -> Table:
    """A row per artifact and device, smallest first; intervals are 95 %."""
    sets = list(dict.fromkeys(name for each in compared for name in each.retrieval))
    names = ("recipe", "format", "device", "MB", "stored bits", "1−cos", "interval", "top-10 kept", "speed of fp32's",
             *(f"{name}: NDCG@10 less fp32's" for name in sets))  # fmt: skip
    table = _table("side by side", *names, right=names[3:])
    for each in compared:
        found = (each.retrieval.get(name) for name in sets)
        table.add_row(
            each.name, each.format, each.device, f"{each.bytes / 1e6:.2f}", f"{each.stored_bits:.2f}", f"{each.loss:.5f}",
            "{:.5f} to {:.5f}".format(*each.loss_ci), f"{each.top10_retention:.4f}", f"{each.speed_ratio:.2f} ×",
            *("{:+.4f} ({:+.4f} to {:+.4f})".format(it.delta, *it.ci) if it else "" for it in found),
        )  # fmt: skip
    return table


def map_table(found: ModelMap) -> Table:
    """A row per layer: what it does, and what rounding it alone costs."""
    bits = sorted({each.bits for each in found.damages})
    names = ("layer", "rewrites", "same word", "same text", "largest dims", "anisotropy",
             *(f"{part} at {each} bits" for each in bits for part in ("1−cos", "top-10")))  # fmt: skip
    table = _table(f"{found.model}, {found.texts} texts", *names, right=names)
    for each in found.readings:
        costs = [damage for damage in found.damages if damage.layer == each.layer]
        table.add_row(
            str(each.layer), f"{each.rewrite:.3f}", f"{each.same_word:.3f}", f"{each.same_text:.3f}",
            f"{each.largest_share:.3f}", f"{each.anisotropy:.3f}",
            *(part for damage in costs for part in (f"{damage.loss:.5f}", f"{damage.top10_retention:.3f}")),
        )  # fmt: skip
    return table


def map_notes(found: ModelMap) -> Iterator[str]:
    """What the map says in words."""
    if found.binding_layer is not None:
        yield f"From layer {found.binding_layer} on, a word is nearer to its own text than to itself in another."
    known = {name: value for name, value in found.correlations.items() if value is not None}
    if known:
        shown = ", ".join(f"{name} {value:+.2f}" for name, value in sorted(known.items(), key=lambda each: -abs(each[1])))
        yield f"Rank correlation with the 4-bit loss over layers: {shown}."


def found_table(found: Found) -> Table:
    """The types that were chosen, by type, and what was predicted beside what was measured."""
    names = ("type", "groups")
    table = _table(
        f"{found.bytes:,} bytes, {found.stored_bits:.3f} stored bits; 1−cos predicted {found.predicted:.6f}, "
        f"measured {found.measured:.6f} on the same texts, rounded to nearest", *names
    )  # fmt: skip
    for native in sorted(set(found.types.values()), key=bits_of):
        table.add_row(native, ", ".join(name for name, each in found.types.items() if each == native))
    return table


def frontier_table(found: Frontier) -> Table:
    """Every point, smallest first."""
    names = ("chosen by", "name", "MB", "stored bits", "1−cos", "predicted")
    table = _table(f"{found.model}: bytes against loss on unseen sentences", *names, right=names[2:])
    for each in sorted(found.points, key=lambda each: each.bytes):
        expected = "" if each.predicted is None else f"{each.predicted:.5f}"
        table.add_row(each.kind, each.name, f"{each.bytes / 1e6:.2f}", f"{each.stored_bits:.2f}", f"{each.loss:.5f}", expected)
    return table


def inspection_parts(found: Inspection) -> Iterator[Table | str]:
    """What `inspect` shows of one artifact: the map of types by layer, metadata, warnings."""
    sizes = f"{found.bytes:,} bytes, {found.parameters:,} parameters, {found.stored_bits:.2f} stored bits"
    yield _layer_map(escape(f"{found.path}\n{found.format}: {sizes}"), found.tensors)
    for key, value in found.metadata.items():
        if not isinstance(value, list) and not key.startswith("general.dataset."):
            yield escape(f"  {key} = {value}")
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
