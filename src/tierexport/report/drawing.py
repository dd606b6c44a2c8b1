"""How figures are made with matplotlib: one look, text that stays text, and the same bytes from run to run."""

import io
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#5a6875"
"""The colour of axes and text, for which a page puts that of its own text."""

GRID = "0.92"


def figure(panels: float, height: float = 4.5) -> "Figure":
    """An empty figure, so many panels wide and `height` inches high."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "tierexport", "font.size": 9})
    return Figure(figsize=(6 * panels, height), layout="constrained")


def written(drawn: "Figure", kind: str, transparent: bool = False) -> bytes:
    """A figure as a file of a kind: "svg", "png" or "pdf"."""
    file = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    drawn.savefig(file, format=kind, dpi=150, metadata=metadata, transparent=transparent)
    return file.getvalue()


def inline(drawn: "Figure", label: str) -> str:
    """A figure as an SVG element for a page, in the page's own colours; `label` is what it shows, in words.

    Namespaces and metadata, which name addresses of the network, are left out: HTML needs neither.
    """
    whole = written(drawn, "svg", transparent=True).decode()
    element = re.sub(r"<metadata>.*?</metadata>| xmlns(:\w+)?=\"[^\"]*\"", "", whole[whole.index("<svg") :], flags=re.DOTALL)
    element = element.replace("xlink:href", "href").replace(INK, "currentColor")
    return element.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
