"""report.html: one self-contained page, drawn from the manifest and the verification alone."""

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
import numpy as np

from tierexport.artifact.verdicts import RetrievalVerdict, Verdict, Verification
from tierexport.metrics.similarity import SIMILARITIES
from tierexport.model.roles import ROLES
from tierexport.report.tables import colour_bits

WIDTH, HEIGHT = 640, 100
BINS = 40


def render_page(manifest: Mapping[str, Any], found: Verification) -> str:
    """The page as HTML; it asks for nothing over the network."""
    template = resources.files("tierexport.report").joinpath("page.html").read_text("utf-8")
    judged = [(verdict, each) for verdict in found.verdicts for each in verdict.retrieval_shown]
    place = _scale([each for _, each in judged])
    return (
        jinja2.Environment(autoescape=True)
        .from_string(template)
        .render(
            manifest=manifest,
            found=found,
            texts=max((verdict.fidelity.texts for verdict in found.verdicts if verdict.fidelity), default=0),
            maps=[tier_map(artifact) for artifact in manifest["artifacts"]],
            histograms=[
                _histogram(verdict, _lowest(found)) for verdict in found.verdicts if verdict.cosines and not verdict.vectors
            ],
            intervals=[_interval(verdict, each, place) for verdict, each in judged],
            zero=_position(0, place),
            similarity=SIMILARITIES[found.similarity].words,
            queries=[_differences(verdict, each) for verdict, each in judged],
        )
    )


def tier_map(artifact: Mapping[str, Any]) -> dict[str, Any]:
    """Rows are layers, columns roles, cells native types; what lies outside the layers comes first."""
    tensors = [each for each in artifact["tensors"] if each["role"] != "kept"]
    layered = [role for role in ROLES if any(each["layer"] is not None and each["role"] == role for each in tensors)]
    rows = []
    for each in tensors:
        if each["layer"] is None:
            cells = [_cell([each])] + [{"type": "", "colour": ""}] * (len(layered) - 1)
            rows.append({"name": each["role"], "cells": cells, "bytes": each["bytes"]})
    for layer in sorted({each["layer"] for each in tensors if each["layer"] is not None}):
        here = [each for each in tensors if each["layer"] == layer]
        cells = [_cell([each for each in here if each["role"] == role]) for role in layered]
        rows.append({"name": layer, "cells": cells, "bytes": sum(each["bytes"] for each in here)})
    return {"format": artifact["format"], "roles": layered, "rows": rows}


def _cell(tensors: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    types = list(dict.fromkeys(each["type"] for each in tensors))
    return {"type": " ".join(types), "colour": f"b{colour_bits(types[0])}" if types else ""}


def _lowest(found: Verification) -> float:
    """Where the histograms' common axis starts."""
    return min(0.999, *(min(verdict.cosines, default=1.0) for verdict in found.verdicts if not verdict.vectors))


def _histogram(verdict: Verdict, low: float) -> dict[str, Any]:
    counts, _ = np.histogram(verdict.cosines, BINS, (low, 1))
    heights = counts / max(counts.max(), 1) * (HEIGHT - 5)
    step = WIDTH / BINS
    bars = [_bar(index * step, HEIGHT - height, step - 1, height) for index, height in enumerate(heights)]
    title = f"{verdict.label} on {verdict.device}: cosines to fp32, from {low:.4f} to 1"
    return {"title": title, "bars": bars}


def _differences(verdict: Verdict, judged: RetrievalVerdict) -> dict[str, Any]:
    """One bar per query whose NDCG@10 changed, largest loss first."""
    changed = sorted(delta for delta in judged.deltas if delta)
    step = WIDTH / max(len(changed), 1)
    middle = HEIGHT * 0.6
    bars = [
        _bar(index * step, middle - max(delta, 0) * (middle - 5), max(step - 1, 0.5), abs(delta) * (middle - 5))
        for index, delta in enumerate(changed)
    ]
    lost, won = sum(delta < 0 for delta in changed), sum(delta > 0 for delta in changed)
    title = (
        f"{judged.dataset}, {verdict.label} on {verdict.device}: of {judged.queries} queries {lost} lost, {won} won, "
        f"{judged.queries - lost - won} unchanged; each bar a query"
    )
    return {"title": title, "bars": bars}


def _bar(x: float, y: float, width: float, height: float) -> dict[str, str]:
    return {key: f"{value:.1f}" for key, value in (("x", x), ("y", y), ("width", width), ("height", height))}


def _scale(judged: Sequence[RetrievalVerdict]) -> tuple[float, float]:
    ends = list(_ends(judged))
    margin = (max(ends) - min(ends)) * 0.05 or 0.01
    return min(ends) - margin, max(ends) + margin


def _ends(judged: Sequence[RetrievalVerdict]) -> Iterator[float]:
    yield 0.0
    for each in judged:
        yield from (each.ci_low, each.ci_high)


def _position(value: float, scale: tuple[float, float]) -> str:
    low, high = scale
    return f"{(value - low) / (high - low) * WIDTH:.1f}"


def _interval(verdict: Verdict, judged: RetrievalVerdict, scale: tuple[float, float]) -> dict[str, str]:
    scores = f"{judged.ndcg_at_10:.4f}, fp32 {judged.reference_ndcg_at_10:.4f}"
    spread = f"{judged.delta:+.4f} ({judged.ci_low:+.4f} to {judged.ci_high:+.4f}, p {judged.p_value:.2f})"
    label = f"{judged.dataset}, {verdict.label} on {verdict.device}: {scores}, {spread}"
    ends = {"low": judged.ci_low, "high": judged.ci_high, "mean": judged.delta}
    return {"label": label, **{name: _position(value, scale) for name, value in ends.items()}}
