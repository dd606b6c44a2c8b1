"""The pictures of report.html, drawn by matplotlib as SVG inside the page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from tierexport.artifact.verdicts import RetrievalVerdict, Verdict, Verification
from tierexport.report.drawing import INK, figure, inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 40
WIDTH = 0.8
"""Panels: pictures stand two beside one another, or one under another, with text that a phone shows in a legible size."""

MARK = "#2b7de0"
"""Of bars, points and whiskers, on light pages and on dark ones."""


@dataclass(frozen=True)
class Chart:
    """A picture and what it shows, in words."""

    title: str
    svg: str


def histograms(found: Verification) -> Iterator[Chart]:
    """How the texts' cosines to fp32 are spread, for each artifact on each device, on one common axis."""
    shown = [each for each in found.verdicts if each.cosines and not each.vectors]
    low = min([0.999, *(min(each.cosines) for each in shown)])
    for each in shown:
        drawn = figure(WIDTH, 1.8)
        axes = _axes(drawn.subplots(), "left", "bottom")
        axes.hist(each.cosines, bins=BINS, range=(low, 1), color=MARK)
        axes.locator_params("x", nbins=5)
        axes.locator_params("y", nbins=4, integer=True)
        axes.set_xlabel("cosine to fp32", color=INK)
        axes.set_ylabel("texts", color=INK)
        title = f"{each.label} on {each.device}: cosines to fp32, from {low:.4f} to 1"
        yield Chart(title, inline(drawn, escape(title)))


def intervals(judged: Sequence[tuple[Verdict, RetrievalVerdict]]) -> Iterator[Chart]:
    """Each difference of NDCG@10 to fp32 with its 95 % interval, on one common axis, in which 0 is marked."""
    ends = [0.0, *(end for _, each in judged for end in (each.ci_low, each.ci_high))]
    margin = (max(ends) - min(ends)) * 0.05 or 0.01
    for verdict, each in judged:
        drawn = figure(WIDTH, 0.6)
        axes = _axes(drawn.subplots())
        axes.axvline(0, color=INK, linewidth=0.8)
        error = ([each.delta - each.ci_low], [each.ci_high - each.delta])
        axes.errorbar(each.delta, 0, xerr=error, marker="o", color=MARK, capsize=3)
        axes.locator_params("x", nbins=5)
        axes.set_xlim(min(ends) - margin, max(ends) + margin)
        axes.set_yticks([])
        title = _scores(verdict, each)
        yield Chart(title, inline(drawn, escape(title)))


def _scores(verdict: Verdict, each: RetrievalVerdict) -> str:
    spread = f"{each.delta:+.4f} ({each.ci_low:+.4f} to {each.ci_high:+.4f}, p {each.p_value:.2f})"
    return (
        f"{each.dataset}, {verdict.label} on {verdict.device}: {each.ndcg_at_10:.4f}, "
        f"fp32 {each.reference_ndcg_at_10:.4f}, {spread}"
    )


def differences(judged: Sequence[tuple[Verdict, RetrievalVerdict]]) -> Iterator[Chart]:
    """One bar per query whose NDCG@10 changed, largest loss first."""
    for verdict, each in judged:
        changed = sorted(delta for delta in each.deltas if delta)
        drawn = figure(WIDTH, 1.8)
        axes = _axes(drawn.subplots(), "left")
        axes.set_ylabel("Δ NDCG@10", color=INK)
        axes.bar(range(len(changed)), changed, width=0.9, color=MARK)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xticks([])
        lost, won = sum(delta < 0 for delta in changed), sum(delta > 0 for delta in changed)
        title = (
            f"{each.dataset}, {verdict.label} on {verdict.device}: of {each.queries} queries {lost} lost, {won} won, "
            f"{each.queries - lost - won} unchanged; each bar a query"
        )
        yield Chart(title, inline(drawn, escape(title)))


def _axes(axes: "Axes", *sides: str) -> "Axes":
    """Axes in the page's colours, with lines on these sides of the frame alone, at the bottom if none is named."""
    axes.tick_params(colors=INK)
    for name, spine in axes.spines.items():
        spine.set_color(INK)
        spine.set_visible(name in (sides or ("bottom",)))
    return axes
