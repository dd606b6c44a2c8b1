"""Pictures with axes, drawn by matplotlib: bytes against what they buy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tierexport.base.errors import InputError
from tierexport.base.registry import FORMATS
from tierexport.formats import format_named
from tierexport.report.comparison import Compared
from tierexport.report.drawing import GRID, figure, written
from tierexport.report.figures import Interval
from tierexport.report.labels import name_points
from tierexport.search.found import FoundCodec, Frontier
from tierexport.search.layer_map import ModelMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = ("svg", "png", "pdf")
COLOURS = {"searched": "#2b7de0", "shipped": "#2e9e5b", "llama.cpp": "#e0662b"}
"""Of a frontier's points, by how they were chosen."""

UNKNOWN_COLOUR = "0.5"
"""Grey, of artifacts in a format that is not registered here."""


def kind_of(picture: Path) -> str:
    """The format that a picture's name asks for. Raises InputError for one that can't be drawn."""
    kind = picture.suffix.lstrip(".").lower()
    if kind not in KINDS:
        raise InputError(f"can't draw {picture.name}: a picture is one of {', '.join(KINDS)}")
    return kind


def compare_picture(compared: Sequence[Compared], kind: str) -> bytes:
    """A row per artifact, smallest first: megabytes, 1 − cosine, relative error, and each set's Δ NDCG@10 vs fp32.

    Every point has its 95 % interval; rows rather than a plane, so that no name hides another. `kind`
    is the file format, one of KINDS.
    """
    sets = list(dict.fromkeys(name for each in compared for name in each.retrieval))
    drawn = figure(1 + 0.75 * (2 + len(sets)), 1.2 + 0.3 * len(compared))
    sizes, loss, errors, *differences = drawn.subplots(1, 3 + len(sets), sharey=True)
    rows = range(len(compared))
    colours = [_colour(each.format) for each in compared]
    sizes.barh(rows, [each.bytes / 1e6 for each in compared], color=colours, height=0.6)
    sizes.set_title("MB")
    sizes.set_yticks(rows, [f"{each.name}, {each.format} on {each.device}" for each in compared])
    sizes.invert_yaxis()
    for row, each in enumerate(compared):
        _whisker(loss, row, each.loss, each.loss_ci, colours[row])
        if each.relative_error is not None and each.relative_error_ci:
            _whisker(errors, row, each.relative_error, each.relative_error_ci, colours[row])
    _scale(loss, [end for each in compared for end in each.loss_ci])
    _scale(errors, [end for each in compared for end in each.relative_error_ci or ()])
    loss.set_title("1 − cosine to fp32")
    errors.set_title("relative error")
    for axes, name in zip(differences, sets, strict=True):
        for row, each in enumerate(compared):
            if found := each.retrieval.get(name):
                _whisker(axes, row, found.delta, found.ci, colours[row])
        axes.axvline(0, color="0.5", linewidth=0.8)
        axes.set_title(f"{name}: Δ NDCG@10 vs fp32")
    for axes in (sizes, loss, errors, *differences):
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
    return written(drawn, kind)


def _scale(axes: "Axes", ends: Sequence[float]) -> None:
    """A log scale where intervals with these ends span a decade: within one its labels would hide one another."""
    if ends and max(ends) > 10 * min(ends):
        axes.set_xscale("log")
    else:
        axes.locator_params("x", nbins=4)


def _colour(name: str) -> str:
    """The colour of a format's artifacts."""
    return format_named(name).colour if name in FORMATS else UNKNOWN_COLOUR


def _whisker(axes: "Axes", row: int, value: float, interval: Interval, colour: str) -> None:
    low, high = interval
    error = ([max(value - low, 0)], [max(high - value, 0)])
    axes.errorbar(value, row, xerr=error, marker="o", markersize=4, color=colour, capsize=3)


def frontier_picture(found: Frontier, kind: str) -> bytes:
    """Stored bits against loss: the searched sizes as a curve, the others as points with names."""
    drawn = figure(1.3, 3.6)
    axes = drawn.subplots()
    curve = sorted((each for each in found.points if each.kind == "searched"), key=lambda each: each.bytes)
    axes.plot([each.stored_bits for each in curve], [each.loss for each in curve], color=COLOURS["searched"], label="searched")
    for other in ("llama.cpp", "shipped"):
        if not (points := [each for each in found.points if each.kind == other]):
            continue
        axes.plot([each.stored_bits for each in points], [each.loss for each in points], "o", color=COLOURS[other], label=other)
    axes.set_yscale("log")
    axes.set_xlabel("stored bits per parameter, whole file")
    axes.set_ylabel("1 − cosine to fp32, lower is better")
    axes.set_title(f"{found.model} as {found.format}, on unseen sentences")
    axes.grid(color=GRID)
    axes.legend(frameon=False)
    name_points(drawn, [(each.name, each.stored_bits, each.loss) for each in found.points if each.kind != "searched"])
    return written(drawn, kind)


def sizes_picture(sizes: Mapping[str, Sequence[tuple[str, int, float]]]) -> bytes:
    """Megabytes against 1 − cosine of a model's sizes, (name, bytes, loss) each, a line for each format, as a PNG, which every
    hub shows.
    """
    drawn = figure(1, 3.5)
    axes = drawn.subplots()
    for name, points in sizes.items():
        megabytes, losses = [size / 1e6 for _, size, _ in points], [loss for _, _, loss in points]
        axes.plot(megabytes, losses, "o-", color=_colour(name), label=name)
    axes.set_yscale("log")
    axes.margins(x=0.2, y=0.15)
    axes.set_xlabel("size, MB")
    axes.set_ylabel("1 − cosine to fp32, lower is better")
    axes.grid(color=GRID)
    if len(sizes) > 1:
        axes.legend(frameon=False)
    name_points(drawn, [(name, size / 1e6, loss) for points in sizes.values() for name, size, loss in points])
    return written(drawn, "png")


def codecs_picture(found: FoundCodec, kind: str) -> bytes:
    """Bytes of a vector against NDCG@10 on held-back queries, with 95 % intervals of the difference to fp32, a line at which
    is drawn.
    """
    drawn = figure(1)
    axes = drawn.subplots()
    exact = found.points[-1].reference_ndcg_at_10
    for each in found.points:
        error = ([each.delta - each.ci_low], [each.ci_high - each.delta])
        axes.errorbar(
            each.bytes, exact + each.delta, yerr=error, marker="o", markersize=4, color=COLOURS["searched"], capsize=3
        )
        axes.annotate(
            each.name, (each.bytes, exact + each.ci_low), xytext=(0, -12), textcoords="offset points", fontsize=8, ha="center"
        )
    axes.axhline(exact, color="0.5", linewidth=0.8)
    axes.annotate("fp32", (0, exact), xycoords=("axes fraction", "data"), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.margins(x=0.2, y=0.15)
    axes.set_xlabel("bytes of a vector")
    axes.set_title(f"{found.model}: NDCG@10 on held-back queries of {', '.join(found.sets)}")
    axes.grid(color=GRID)
    return written(drawn, kind)


def map_picture(found: ModelMap, kind: str) -> bytes:
    """What each layer does above what rounding it alone costs, layer by layer."""
    drawn = figure(1, 9)
    does, costs, keeps = drawn.subplots(3, 1, sharex=True, height_ratios=(4, 3, 2))
    layers = [each.layer for each in found.readings]
    for name, label in _READINGS.items():
        does.plot(layers, [getattr(each, name) for each in found.readings], "o-", label=label)
    if found.binding_layer is not None:
        does.axvline(found.binding_layer, color="0.5", linestyle=":", label="binding layer")
    does.set_title(f"{found.model}: what each layer does", loc="left")
    does.set_ylim(bottom=min(0, does.get_ylim()[0]))
    bits = sorted({each.bits for each in found.sensitivities})
    width = 0.8 / len(bits)
    for number, each in enumerate(bits):
        rounded = [rounding for rounding in found.sensitivities if rounding.bits == each]
        beside = [layer + (number - (len(bits) - 1) / 2) * width for layer in layers]
        costs.bar(beside, [layer.loss for layer in rounded], width, label=f"at {each} bits")
        keeps.plot(layers, [layer.top10_retention for layer in rounded], "o-", label=f"at {each} bits")
    costs.set_yscale("log")
    costs.set_title("1 − cosine, with this layer alone rounded", loc="left")
    keeps.set_title("top-10 neighbours kept, likewise", loc="left")
    keeps.set_xlabel("layer")
    keeps.set_xticks(layers)
    for axes in (does, costs, keeps):
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))  # hides no line
    return written(drawn, kind)


_READINGS = {
    "rewrite": "rewrites its input",
    "same_word": "same word elsewhere is nearest",
    "same_text": "same text's word is nearest",
    "largest_share": "largest dims: norm in 4 of them",
    "anisotropy": "anisotropy",
}
