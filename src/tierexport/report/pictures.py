"""Pictures with axes, drawn by matplotlib: bytes against what they buy."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tierexport.comparison import Compared, Interval
from tierexport.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("svg", "png", "pdf")
COLOURS = {"gguf": "#2b7de0", "torchao": "#e0662b"}
MARKS = {"cpu": "o", "cuda": "s"}


def compare_picture(compared: Sequence[Compared], kind: str) -> bytes:
    """Megabytes against 1 − cosine and, for each retrieval set, the difference of NDCG@10 to fp32.

    Every point has its 95 % interval. `kind` is the file format, one of KINDS; InputError for another.
    """
    if kind not in KINDS:
        raise InputError(f"can't draw a {kind or 'nameless'} file: a picture is one of {', '.join(KINDS)}")
    sets = list(dict.fromkeys(name for each in compared for name in each.retrieval))
    figure = _figure(1 + len(sets))
    loss, *differences = figure.subplots(1, 1 + len(sets), squeeze=False)[0]
    _scatter(loss, compared, [each.loss for each in compared], [each.loss_ci for each in compared])
    loss.set_yscale("log")
    loss.set_title("1 − cosine to fp32, lower is better")
    for axes, name in zip(differences, sets, strict=True):
        here = [each for each in compared if name in each.retrieval]
        found = [each.retrieval[name] for each in here]
        _scatter(axes, here, [each.delta for each in found], [each.ci for each in found])
        axes.axhline(0, color="0.5", linewidth=0.8)
        axes.set_title(f"{name}: NDCG@10 less fp32's, 95 % interval")
    for axes in (loss, *differences):
        axes.set_xlabel("MB")
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
    loss.legend(loc="best", frameon=False)
    return _written(figure, kind)


def _figure(panels: int) -> "Figure":
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text, and the ids inside an SVG don't change from run to run.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "tierexport", "font.size": 9})
    return Figure(figsize=(6 * panels, 4.5), layout="constrained")


def _scatter(axes: "Axes", compared: Sequence[Compared], values: Sequence[float], intervals: Sequence[Interval]) -> None:
    for place in dict.fromkeys((each.format, each.device) for each in compared):
        rows = [row for row, each in enumerate(compared) if (each.format, each.device) == place]
        below = [max(values[row] - intervals[row][0], 0) for row in rows]
        above = [max(intervals[row][1] - values[row], 0) for row in rows]
        axes.errorbar(
            [compared[row].bytes / 1e6 for row in rows], [values[row] for row in rows], yerr=(below, above), linestyle="none",
            marker=MARKS[place[1]], color=COLOURS[place[0]], capsize=3, label=f"{place[0]} on {place[1]}",
        )  # fmt: skip
    for each, value in zip(compared, values, strict=True):
        axes.annotate(each.name, (each.bytes / 1e6, value), xytext=(6, 4), textcoords="offset points", fontsize=8)
    axes.margins(x=0.15)


def _written(figure: "Figure", kind: str) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()
