"""Names beside the points of a picture, where they hide nothing."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

BESIDE = [(x * far, y * far) for far in (1, 2, 3) for x, y in ((6, 5), (6, -5), (-6, 5), (-6, -5), (0, 9), (0, -9))]
"""Where a name may stand, in points right of and above what it names; the first where it hides nothing is taken."""

MARGIN = 2
"""Pixels around a name that stay free."""

STEP = 3
"""Pixels between the places of a line that a name is kept off."""


def name_points(drawn: "Figure", points: Sequence[tuple[str, float, float]]) -> None:
    """Write the name of each point (name, x, y) of a figure's only axes beside it.

    It stands off all lines and markers drawn so far, the legend and the other names, where there is such a place.
    """
    drawn.draw_without_rendering()  # the layout says where things lie
    (axes,) = drawn.axes
    places, legend = _drawn(axes), axes.get_legend()
    boxes = [legend.get_window_extent()] if legend else []
    for name, x, y in points:
        note = axes.annotate(name, (x, y), xytext=BESIDE[0], textcoords="offset points", fontsize=8)
        note.set_in_layout(False)
        hidden = [_hidden(axes, _moved(note, place), places, boxes) for place in BESIDE]
        boxes.append(_moved(note, BESIDE[int(np.argmin(hidden))]))


def _hidden(axes: "Axes", box: "Bbox", places: "npt.NDArray[np.float64]", boxes: "Sequence[Bbox]") -> float:
    """How much a name would hide that stands in a box; other names and what lies outside of the axes count most."""
    outside = not (axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max))
    within = ((places >= box.min) & (places <= box.max)).all(1)
    return float(within.sum()) + 100 * sum(box.overlaps(other) for other in boxes) + 1000 * outside


def _moved(note: Any, place: tuple[int, int]) -> "Bbox":
    """The box, in pixels, of a name that is put at an offset of its point, its nearest edge to it."""
    x, y = place
    note.xyann = place
    note.set_horizontalalignment("left" if x > 0 else "right" if x else "center")
    note.set_verticalalignment("bottom" if y > 0 else "top")
    box: Bbox = note.get_window_extent().padded(MARGIN)
    return box


def _drawn(axes: "Axes") -> "npt.NDArray[np.float64]":
    """Pixels (places, 2) along all lines, and at all markers, which are ends of them."""
    found = [np.empty((0, 2))]
    for line in axes.lines:
        pixels = line.get_transform().transform(line.get_xydata())
        if line.get_linestyle() == "None":
            found.append(np.concatenate([pixels + offset for offset in ((0, 0), (4, 0), (-4, 0), (0, 4), (0, -4))]))
            continue
        for start, end in itertools.pairwise(pixels):
            count = int(np.linalg.norm(end - start) / STEP) + 2
            found.append(start + np.linspace(0, 1, count)[:, None] * (end - start))
    return np.concatenate(found)
