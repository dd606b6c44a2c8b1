"""report.html: one self-contained page, drawn from the manifest and the verification alone."""

from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2

from tierexport.artifact.manifest import ArtifactEntry, Manifest, TensorEntry
from tierexport.artifact.verdicts import Verification
from tierexport.base.sizes import shown_size
from tierexport.metrics.similarity import SIMILARITIES
from tierexport.model.roles import ROLES
from tierexport.report import charts
from tierexport.report.figures import with_interval
from tierexport.report.languages import language_table
from tierexport.report.summary import first_verdict, judgement, short_cosine, summary
from tierexport.report.tables import colour_bits


def render_page(manifest: Manifest, found: Verification) -> str:
    """The page as HTML; it asks for nothing over the network."""
    template = resources.files("tierexport.report").joinpath("page.html").read_text("utf-8")
    judged = [(verdict, each) for verdict in found.verdicts for each in verdict.retrieval_shown]
    page = jinja2.Environment(autoescape=True).from_string(template)
    return page.render(
        manifest=manifest,
        found=found,
        summary=summary(manifest, found),
        judgement=judgement(found),
        verdicts={artifact.format: first_verdict(artifact, found) for artifact in manifest.artifacts},
        texts=max((verdict.fidelity.texts for verdict in found.verdicts if verdict.fidelity), default=0),
        maps=[tier_map(artifact) for artifact in manifest.artifacts],
        languages=language_table(found),
        histograms=list(charts.histograms(found)),
        intervals=list(charts.intervals(judged)),
        queries=list(charts.differences(judged)),
        with_interval=with_interval,
        shown_size=shown_size,
        short_cosine=short_cosine,
        similarity=SIMILARITIES[found.similarity].words,
    )


def tier_map(artifact: ArtifactEntry) -> dict[str, Any]:
    """Rows are layers, columns roles, cells native types; what lies outside the layers comes first, in a column of its own."""
    tensors = [each for each in artifact.tensors if each.role != "kept"]
    layered = [role for role in ROLES if any(each.layer is not None and each.role == role for each in tensors)]
    rows = []
    for each in tensors:
        if each.layer is None:
            cells = [_cell([each]), *[_cell([])] * len(layered)]
            rows.append({"name": each.role, "cells": cells, "bytes": each.bytes})
    for layer in sorted({each.layer for each in tensors if each.layer is not None}):
        here = [each for each in tensors if each.layer == layer]
        cells = [_cell([]), *(_cell([each for each in here if each.role == role]) for role in layered)]
        rows.append({"name": layer, "cells": cells, "bytes": sum(each.bytes for each in here)})
    return {"format": artifact.format, "roles": ["outside the layers", *layered], "rows": rows}


def _cell(tensors: Sequence[TensorEntry]) -> dict[str, str]:
    types = list(dict.fromkeys(each.type for each in tensors))
    return {"type": " ".join(types), "colour": f"b{colour_bits(types[0])}" if types else ""}
