"""Tables of what searches and maps found."""

from collections.abc import Iterator

from tierexport.report.sheet import Sheet, new_sheet
from tierexport.report.tables import colour_bits
from tierexport.search.found import Found, FoundCodec, Frontier
from tierexport.search.layer_map import CAUSAL_BITS, ModelMap

READING_NAMES = {
    "rewrite": "rewrites",
    "same_word": "same word",
    "same_text": "same text",
    "largest_share": "largest dims",
    "anisotropy": "anisotropy",
}
"""What the columns of the map are called, and the notes call them."""


def map_table(found: ModelMap) -> Sheet:
    """A row per layer: what it does, and what rounding it alone costs."""
    bits = sorted({each.bits for each in found.sensitivities})
    names = ("layer", *READING_NAMES.values(),
             *(f"{part} at {each} bits" for each in bits for part in ("1−cos", "top-10")))  # fmt: skip
    table = new_sheet(f"{found.model}, {found.texts} texts", *names, right=names)
    for each in found.readings:
        costs = [cost for cost in found.sensitivities if cost.layer == each.layer]
        table.add_row(
            str(each.layer), f"{each.rewrite:.3f}", f"{each.same_word:.3f}", f"{each.same_text:.3f}",
            f"{each.largest_share:.3f}", f"{each.anisotropy:.3f}",
            *(part for cost in costs for part in (f"{cost.loss:.5f}", f"{cost.top10_retention:.3f}")),
        )  # fmt: skip
    return table


def map_notes(found: ModelMap) -> Iterator[str]:
    """What the map says in words."""
    if found.binding_layer is not None:
        yield f"From layer {found.binding_layer} on, same text is above same word: a word is nearer to its text than to itself."
    known = {name: value for name, value in found.correlations.items() if value is not None}
    if known:
        shown = ", ".join(
            f"{READING_NAMES[name]} {value:+.2f}" for name, value in sorted(known.items(), key=lambda each: -abs(each[1]))
        )
        yield f"Rank correlation over layers with 1−cos at {min(CAUSAL_BITS)} bits: {shown}."


def found_table(found: Found) -> Sheet:
    """The types that were chosen, by type, and what was predicted beside what was measured."""
    took = "" if found.time is None else f", {found.time:.2f} of the time of Q8_0"
    table = new_sheet(
        f"{found.bytes:,} bytes, {found.stored_bits:.3f} stored bits{took}; 1−cos predicted {found.predicted:.6f}, "
        f"{'not measured' if found.measured is None else f'measured {found.measured:.6f}'} as built, on other texts",
        "type", "groups", text=("groups",),
    )  # fmt: skip
    for native in sorted(set(found.types.values()), key=colour_bits):
        table.add_row(native, ", ".join(name for name, each in found.types.items() if each == native))
    return table


def frontier_table(found: Frontier) -> Sheet:
    """Every point, smallest first."""
    names = ("chosen by", "name", "MB", "stored bits", "1−cos", "predicted", "relative error")
    table = new_sheet(f"{found.model}: bytes against loss on unseen sentences", *names, right=names[2:], keys=2)
    for each in sorted(found.points, key=lambda each: each.bytes):
        expected = "" if each.predicted is None else f"{each.predicted:.5f}"
        figures = (f"{each.loss:.5f}", expected, f"{each.relative_error:.5f}")
        table.add_row(each.kind, each.name, f"{each.bytes / 1e6:.2f}", f"{each.stored_bits:.2f}", *figures)
    return table


def codecs_table(found: FoundCodec) -> Sheet:
    """The frontier of a search for a codec, the best last."""
    right = ("bytes", "NDCG@10", "Δ vs fp32", "recall@10", "rescored")
    title = f"{found.model}: {found.tried} codecs tried, these judged on held-back queries of {', '.join(found.sets)}"
    table = new_sheet(title, "codec", *right[:3], "95 % interval", *right[3:], right=right)
    for each in found.points:
        table.add_row(
            each.name, str(each.bytes), f"{each.reference_ndcg_at_10 + each.delta:.4f}", f"{each.delta:+.4f}",
            f"{each.ci_low:+.4f} to {each.ci_high:+.4f}", f"{each.recall:.3f}", f"{each.rescored:.3f}",
        )  # fmt: skip
    return table
