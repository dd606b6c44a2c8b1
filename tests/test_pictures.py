"""Pictures: both axes are named, and no name hides a point, a line or another name."""

import itertools
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from tierexport.report import search_tables
from tierexport.report.comparison import Compared
from tierexport.report.drawing import figure
from tierexport.report.labels import BESIDE, name_points
from tierexport.report.pictures import compare_picture, frontier_picture
from tierexport.search.found import Frontier, Point
from tierexport.search.layer_map import LayerSensitivity, draw_map
from tierexport.search.layers import LayerReading

CROWDED = [
    ("three_tier", 11.92, 0.0018),
    ("protect_late", 11.61, 0.0025),
    ("protect_downproj", 11.61, 0.0050),
    ("f16", 16.4, 1e-5),
]
"""Points of a frontier whose names hid one another."""


def _hiding(places: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many names overlap, leave the axes or lie over a point, where they may stand in these places."""
    monkeypatch.setattr("tierexport.report.labels.BESIDE", places)
    drawn = figure(1)
    axes = drawn.subplots()
    axes.plot([5, 9, 16.4], [0.02, 0.0003, 0.00001])
    axes.plot([x for _, x, _ in CROWDED], [y for _, _, y in CROWDED], "o", label="shipped")
    axes.set_yscale("log")
    axes.legend()
    name_points(drawn, CROWDED)
    drawn.draw_without_rendering()
    boxes = [each.get_window_extent() for each in axes.texts if isinstance(each, Annotation)]
    assert len(boxes) == len(CROWDED)
    points = axes.transData.transform([(x, y) for _, x, y in CROWDED])
    overlapping = sum(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    over = sum(box.contains(*point) for box, point in itertools.product(boxes, points))
    return overlapping + over + sum(not axes.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_no_name_hides_a_point_or_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _hiding(BESIDE, monkeypatch) == 0
    assert _hiding(BESIDE[:1], monkeypatch) > 0


def test_the_frontier_names_both_axes_and_all_points() -> None:
    points = [Point("shipped", name, int(bits * 1e6), bits, loss, loss) for name, bits, loss in CROWDED]
    points += [Point("searched", "", int(bits * 1e6), bits, 0.1 / bits, 0.1 / bits, 0.1) for bits in np.linspace(5, 16, 6)]
    drawn = frontier_picture(Frontier("tiny", "gguf", tuple(points)), "svg")
    said = {each.text for each in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")}
    assert {name for name, *_ in CROWDED} <= said
    assert {"stored bits per parameter, whole file", "1 − cosine to fp32, lower is better"} <= said


@pytest.mark.parametrize("least", [0.0016, 0.00001])
def test_the_labels_of_a_comparison_s_axes_hide_nothing(least: float, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Figure] = []

    def kept(drawn: Figure, kind: str) -> bytes:
        made.append(drawn)
        return b""

    monkeypatch.setattr("tierexport.report.pictures.written", kept)
    compare_picture([_compared("a", least), _compared("b", 0.0018), _compared("c", 0.002)], "svg")
    (drawn,) = made
    drawn.draw_without_rendering()
    for axes in drawn.axes:
        labels = [each for each in axes.get_xticklabels(which="both") if each.get_text()]
        labels = [each for each in labels if axes.viewLim.containsx(each.get_position()[0])]
        assert len(labels) >= 2
        boxes = [each.get_window_extent() for each in labels]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2)), axes.get_title()


def _compared(name: str, loss: float) -> Compared:
    near = (loss * 0.95, loss * 1.05)
    return Compared(name, "gguf", "cpu", 16_000_000, 5.8, loss, near, loss, near, 0.95, (0.94, 0.96), None, {})


def test_the_map_s_notes_use_the_table_s_words() -> None:
    readings = [LayerReading(layer, 0.1 * layer, 0.9 - 0.2 * layer, 0.2 * layer, 0.5 - 0.1 * layer, 0.1) for layer in range(4)]
    costs = [LayerSensitivity(layer, bits, 0.001 * (layer + 1), 0.9) for layer in range(4) for bits in (4, 8)]
    found = draw_map("tiny", 8, readings, costs)
    binding, correlations = search_tables.map_notes(found)
    names = search_tables.map_table(found).names
    assert "same text is above same word" in binding
    assert {"same text", "same word"} <= set(names)
    told = [each.rpartition(" ")[0] for each in correlations.partition(": ")[2].rstrip(".").split(", ")]
    assert len(told) == 4  # one reading is alike in all layers
    assert {*told, "1−cos at 4 bits"} <= set(names)
    assert "1−cos at 4 bits" in correlations
