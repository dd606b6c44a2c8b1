"""Tables for the terminal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape

from tierexport.artifact.manifest import Manifest
from tierexport.artifact.stored import StoredTensor, nominal_bits
from tierexport.artifact.verdicts import Fidelity, Verification
from tierexport.base.records import bits_per_parameter
from tierexport.formats.header import Omitted
from tierexport.formats.inspection import Inspection
from tierexport.metrics.similarity import SIMILARITIES
from tierexport.model.roles import ROLES, UNQUANTIZED_ROLE
from tierexport.recipe.plan import Plan
from tierexport.recipe.planned import FormatPlan
from tierexport.report.comparison import Compared
from tierexport.report.figures import with_interval
from tierexport.report.languages import LanguageTable, language_table
from tierexport.report.sheet import Sheet, new_sheet

COLOURS = {2: "red", 3: "red", 4: "yellow", 5: "yellow", 6: "green", 8: "green", 16: "cyan", 32: "blue"}
"""Warm is few bits, cold is many: the same colours wherever tiers are shown."""


def plan_table(plan: FormatPlan) -> Sheet:
    """Every tensor that is not kept, with its tier and type; the kept ones in one row."""
    table = new_sheet(
        plan.format, "tensor", "role", "layer", "tier", "bits", "type", "rounding", "shape", "bytes", "",
        right=("layer", "bits", "bytes"), text=("",),
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


def totals_table(plan: Plan) -> Sheet:
    """One row per format: parameters, bytes, nominal bits, bits per parameter of the tensors alone, and how many tensors have
    error feedback, and how many of layers have not.
    """
    names = ("format", "parameters", "tensor bytes", "nominal bits", "tensor bits", "error feedback", "layers: to nearest")
    table = new_sheet("totals", *names, right=names[1:])
    for fmt in plan.formats:
        bits = (f"{each:.2f}" for each in (fmt.nominal_bits, fmt.tensor_bits))
        counts = (str(fmt.fed_back), str(fmt.to_nearest))
        table.add_row(fmt.format, f"{fmt.parameters:,}", f"{fmt.bytes:,}", *bits, *counts)
    return table


def sizes_table(manifest: Manifest) -> Sheet:
    """What a build made: bytes and bits of each artifact."""
    names = ("format", "file", "MB", "nominal bits", "stored bits")
    table = new_sheet(f"{manifest.model.name} · {manifest.recipe.name}", *names, right=names[2:], keys=2)
    for artifact in manifest.artifacts:
        bits = (f"{each:.2f}" for each in (artifact.nominal_bits, artifact.stored_bits))
        table.add_row(artifact.format, artifact.path, f"{artifact.bytes / 1e6:.2f}", *bits)
    return table


def verification_tables(found: Verification) -> Iterator[Sheet]:
    """Fidelity of each artifact on each device, retrieval, sentence similarity, gates."""
    yield _fidelity_table(found)
    if languages := language_table(found):
        yield _languages_table(languages)
    if any(verdict.lengths for verdict in found.verdicts):
        yield _lengths_table(found)
    if any(verdict.retrieval for verdict in found.verdicts):
        yield _retrieval_table(found)
    if any(verdict.sts for verdict in found.verdicts):
        yield _sts_table(found)
    if found.gates:
        yield _gates_table(found)


def _fidelity_table(found: Verification) -> Sheet:
    names = ("format", "device", "same tokens", "cos mean", "cos p1", "cos min", "top-10 kept", "95 % interval",
             "rank corr.", "relative error", "texts/s", "fp32's")  # fmt: skip
    table = new_sheet(f"against {found.reference}", *names, right=names[2:], keys=2)
    for verdict in found.verdicts:
        if verdict.fidelity is None:
            colour = "red" if verdict.status == "failed" else "dim"
            table.add_row(verdict.label, verdict.device, f"[{colour}]{verdict.status}[/]")
            continue
        speeds = (verdict.texts_per_second, verdict.reference_texts_per_second)
        table.add_row(
            verdict.label, verdict.device, f"{verdict.tokens_share:.1%}", *_fidelity_cells(verdict.fidelity),
            *(f"{each:.0f}" if each else "" for each in speeds),
        )  # fmt: skip
        if verdict.same_tokens:
            table.add_row(verdict.label, verdict.device, "only these", *_fidelity_cells(verdict.same_tokens))
    return table


def _fidelity_cells(fidelity: Fidelity) -> Iterator[str]:
    yield from (f"{each:.5f}" for each in (fidelity.cos_mean, fidelity.cos_p1, fidelity.cos_min))
    yield from (f"{fidelity.top10_retention:.4f}", "{:.4f} to {:.4f}".format(*fidelity.top10_ci))
    yield f"{fidelity.rank_correlation:.5f}"
    yield with_interval(fidelity.relative_error, fidelity.relative_error_ci)


def _languages_table(found: LanguageTable) -> Sheet:
    table = new_sheet(
        "mean cosine by language, 95 % intervals", "language", "texts", *found.columns, right=["texts", *found.columns]
    )
    for row in found.rows:
        table.add_row(row.name, str(row.texts), *row.cells)
    return table


def _lengths_table(found: Verification) -> Sheet:
    table = new_sheet("by length of texts", "format", "device", "tokens", "texts", "cos mean", "cos min",
                      right=("tokens", "texts", "cos mean", "cos min"), keys=3)  # fmt: skip
    for verdict in found.verdicts:
        for each in verdict.lengths:
            numbers = (f"{each.tokens:,}", str(each.texts), f"{each.cos_mean:.5f}", f"{each.cos_min:.5f}")
            table.add_row(verdict.label, verdict.device, *numbers)
    return table


def _retrieval_table(found: Verification) -> Sheet:
    names = ("set", "format", "device", "same tokens", "NDCG@10", "fp32's", "difference", "95 % interval", "p",
             "Recall@10", "fp32's", "MRR@10")  # fmt: skip
    table = new_sheet(f"retrieval, scored by {SIMILARITIES[found.similarity].words}", *names, right=names[3:], keys=3)
    for verdict in found.verdicts:
        for each in verdict.retrieval_shown:
            table.add_row(
                each.dataset, verdict.label, verdict.device, f"{each.tokens_equal:.1%}", f"{each.ndcg_at_10:.4f}",
                f"{each.reference_ndcg_at_10:.4f}", f"{each.delta:+.4f}", f"{each.ci_low:+.4f} to {each.ci_high:+.4f}",
                f"{each.p_value:.3f}", f"{each.recall_at_10:.4f}", f"{each.reference_recall_at_10:.4f}",
                f"{each.mrr_at_10:.4f}",
            )  # fmt: skip
    return table


def _sts_table(found: Verification) -> Sheet:
    names = ("pairs", "format", "device", "Spearman", "fp32's", "difference", "95 % interval")
    table = new_sheet("sentence similarity", *names, right=names[3:], keys=3)
    for verdict in found.verdicts:
        if each := verdict.sts:
            table.add_row(
                each.dataset, verdict.label, verdict.device, f"{each.spearman:.4f}", f"{each.reference_spearman:.4f}",
                f"{each.delta:+.4f}", f"{each.ci_low:+.4f} to {each.ci_high:+.4f}",
            )  # fmt: skip
    return table


def _gates_table(found: Verification) -> Sheet:
    table = new_sheet("gates", "gate", "format", "device", "value", "passed", right=("value",), keys=3)
    for gate in found.gates:
        shown = "[green]yes[/]" if gate.passed else "[red]no[/]"
        table.add_row(gate.name, gate.format, gate.device, "not measured" if gate.value is None else f"{gate.value:.5f}", shown)
    return table


def compare_table(compared: Sequence[Compared]) -> Sheet:
    """A row per artifact and device, smallest first; intervals are 95 %."""
    sets = list(dict.fromkeys(name for each in compared for name in each.retrieval))
    names = ("recipe", "format", "device", "MB", "stored bits", "1−cos", "interval", "relative error", "top-10 kept",
             "speed of fp32's", *(f"{name}: Δ NDCG@10 vs fp32" for name in sets))  # fmt: skip
    table = new_sheet("side by side", *names, right=names[3:], keys=3)
    for each in compared:
        found = (each.retrieval.get(name) for name in sets)
        error = "" if each.relative_error is None else f"{each.relative_error:.5f}"
        speed = f"{each.speed_ratio:.2f} ×" if each.speed_ratio else ""
        table.add_row(
            each.name, each.format, each.device, f"{each.bytes / 1e6:.2f}", f"{each.stored_bits:.2f}", f"{each.loss:.5f}",
            "{:.5f} to {:.5f}".format(*each.loss_ci), error, f"{each.top10_retention:.4f}", speed,
            *("{:+.4f} ({:+.4f} to {:+.4f})".format(it.delta, *it.ci) if it else "" for it in found),
        )  # fmt: skip
    return table


MOST_LAYERS, MOST_KEYS, LINE = 256, 256, 120
"""Rows of the map of layers, keys of metadata, characters of a line: no sane file has more, and --json shows all."""


def inspection_parts(found: Inspection) -> Iterator[Sheet | str]:
    """What `inspect` shows of one artifact: the map of types by layer, the types, metadata, warnings."""
    sizes = f"{found.bytes:,} bytes, {found.parameters:,} parameters, {found.stored_bits:.2f} stored bits"
    yield _layer_map(f"{_shown(found.path)}\n{found.format}: {sizes}", found.tensors)
    yield _types_table(found.tensors)
    short = [key for key, value in found.metadata.items() if not isinstance(value, list | Omitted)]
    for key in short[:MOST_KEYS]:
        if not key.startswith("general.dataset."):
            yield f"  {_shown(f'{key} = {found.metadata[key]}')}"
    if len(short) > MOST_KEYS:
        yield f"  and {len(short) - MOST_KEYS:,} keys more"
    for warning in found.warnings:
        yield f"  [yellow]warning:[/] {_shown(warning, 2 * LINE)}"


def _shown(text: str, most: int = LINE) -> str:
    """Text out of a file, short, and with nothing in it that a terminal or rich would obey."""
    short = text if len(text) <= most else f"{text[: most - 1]}…"
    return escape("".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in short))


def _layer_map(title: str, tensors: Iterable[StoredTensor]) -> Sheet:
    """Rows are tables, layers and heads, columns roles, cells the types stored there; last what no format quantizes."""
    cells: dict[tuple[int | None, str], list[str]] = {}
    for each in tensors:
        layer = None if each.tensor.role == UNQUANTIZED_ROLE else each.tensor.layer
        cells.setdefault((layer, each.tensor.role), []).append(each.type)
    layers = sorted({layer for layer, _ in cells if layer is not None})
    roles = [role for role in ROLES if any(layer is not None and role == other for layer, other in cells)]
    outside = {role: _types(cells[None, role]) for role in (*ROLES, UNQUANTIZED_ROLE) if (None, role) in cells}
    table = new_sheet(title, "layer", "outside the layers", *roles)
    if ROLES[0] in outside:
        table.add_row(ROLES[0], outside.pop(ROLES[0]))
    for layer in layers[:MOST_LAYERS]:
        table.add_row(str(layer), "", *(_types(cells.get((layer, role), [])) for role in roles))
    if len(layers) > MOST_LAYERS:
        table.add_row(f"and {len(layers) - MOST_LAYERS:,} more")
    for role, types in outside.items():
        table.add_row("norms, biases, positions" if role == UNQUANTIZED_ROLE else role, types)
    return table


def _types_table(tensors: Sequence[StoredTensor]) -> Sheet:
    """A row per native type, fewest bits first: what it holds, and what it takes."""
    names = ("type", "tensors", "parameters", "bytes", "of the bytes", "bits")
    table = new_sheet("", *names, right=names[1:])
    whole = max(sum(each.bytes for each in tensors), 1)
    for native in sorted({each.type for each in tensors}, key=lambda name: (colour_bits(name), name)):
        held = [each for each in tensors if each.type == native]
        parameters, size = sum(each.tensor.parameters for each in held), sum(each.bytes for each in held)
        table.add_row(
            _types([native]), f"{len(held):,}", f"{parameters:,}", f"{size:,}", f"{size / whole:.1%}",
            f"{bits_per_parameter(size, parameters):.2f}",
        )  # fmt: skip
    return table


def _types(natives: Sequence[str]) -> str:
    return " ".join(f"[{COLOURS[colour_bits(native)]}]{native}[/]" for native in dict.fromkeys(natives))


def colour_bits(native: str) -> int:
    """The nominal bits of a native type, as near as the colours have them."""
    bits = nominal_bits(native)
    return min(COLOURS, key=lambda each: abs(each - bits))


def vectors_table(rows: Sequence[Mapping[str, Any]], similarity: str) -> Sheet:
    """Ways to quantize vectors beside fp32, and beside what was published of jina-embeddings-v4 on NanoBEIR.

    `similarity`: by what the model's own vectors are compared, in words.
    """
    sets = list(rows[0]["scores"])
    right = (*sets, "average", "Δ vs fp32", "recall@10", "rescored", "bytes", "published", "Δ vs fp32 there")
    title = f"NDCG@10, scored by {similarity}; recall@10 of the nearest by the same vectors unquantized"
    table = new_sheet(title, "vectors", *sets, "average", "Δ vs fp32", "95 % interval", *right[-5:], right=right)
    for row in rows:
        gone = row["published"] - rows[0]["published"]
        table.add_row(
            row["name"], *(f"{row['scores'][name]:.4f}" for name in sets), f"{row['average']:.4f}", f"{row['delta']:+.4f}",
            f"{row['ci_low']:+.4f} to {row['ci_high']:+.4f}", f"{row['recall']:.3f}", f"{row['rescored']:.3f}",
            f"{row['bytes']:,}", f"{row['published']:.2f}", f"{gone:+.2f}",
        )  # fmt: skip
    return table
