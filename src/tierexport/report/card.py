"""The README.md of an artifact folder: what it is, what it costs, how to load it; and its head, which hubs read."""

import json
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from tierexport.artifact.manifest import ArtifactEntry, Manifest, ModelEntry
from tierexport.artifact.stored import is_unquantized
from tierexport.artifact.verdicts import Verdict, Verification
from tierexport.base.packaged import packaged_text
from tierexport.base.sizes import shown_size
from tierexport.formats import all_formats, format_named
from tierexport.formats.protocol import Format
from tierexport.metrics.similarity import SIMILARITIES
from tierexport.model.batches import prompt_for
from tierexport.report.figures import with_interval
from tierexport.report.head import head_fields, unstated
from tierexport.report.languages import language_table
from tierexport.report.page import tier_map
from tierexport.report.summary import judgement, summary

QUESTION = "How do I fix a flat tire?"
"""What the snippets encode."""

POOLED = ("Transformer", "Pooling", "Normalize")
"""The modules that the snippet for transformers stands for; a model with others has none."""

BEST_KNOWN = "sentence-transformers"
"""Of the libraries that open an artifact the one that hubs and most users know."""


MOST_NAMED = 4
"""Tensors that the card names in one line; the manifest has all."""


@dataclass(frozen=True)
class Access:
    """Where a card will be read: what a sentence-transformers user names there, and the command that fetches the files."""

    model: str = "."
    download: str | None = None


def render_card(manifest: Manifest, found: Verification, document: str, access: Access | None = None) -> str:
    """Markdown under a YAML head, from the manifest, the verification and the recipe's text, and from nothing else."""
    access = access or Access()
    model, recipe, artifacts = manifest.model, manifest.recipe, manifest.artifacts
    paths = {artifact.format: artifact.path for artifact in artifacts}
    body = template("card.md").render(
        model=model,
        recipe=recipe,
        artifacts=artifacts,
        tools=manifest.tools,
        vectors=manifest.vectors,
        conversion=manifest.conversion,
        found=found,
        origin=origin(model),
        summary=summary(manifest, found),
        judgement=judgement(found),
        rounding=[line for artifact in artifacts for line in _rounding_lines(artifact)],
        maps=[tier_map(artifact) for artifact in artifacts],
        sentences=max((verdict.fidelity.texts for verdict in found.verdicts if verdict.fidelity), default=0),
        languages=language_table(found),
        speeds=list(_speed_lines(found)),
        retrieval=[(verdict, each) for verdict in found.verdicts for each in verdict.retrieval_shown],
        sts=[(verdict, verdict.sts) for verdict in found.verdicts if verdict.sts],
        **snippets(model),
        similarity=SIMILARITIES[model.similarity].words,
        paths=paths,
        shown=[fmt.name for fmt in _formats(manifest)],
        preferred=_best_opened(manifest)[0],
        name=f"{model.name}-{recipe.name}".lower(),
        place=access.model,
        download=access.download,
        with_interval=with_interval,
        shown_size=shown_size,
        versions=f"tierexport {manifest.tools['tierexport']}, llama.cpp of {manifest.tools['llama.cpp']}",
        document=document.strip(),
    )
    return f"---\n{head(manifest, found)}\n---\n\n{body}"


def template(name: str) -> jinja2.Template:
    """A card's template, which includes the parts that formats have for it, as "gguf/card"."""
    markdown = jinja2.Environment(  # no HTML, so nothing is escaped
        loader=jinja2.FunctionLoader(_part), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return markdown.from_string(packaged_text("tierexport.report", name) or "")


def _part(name: str) -> str | None:
    """A format's part of the card, by "FORMAT/PART"."""
    fmt, _, part = name.partition("/")
    return format_named(fmt).template(part)


def _formats(manifest: Manifest) -> list[Format]:
    """The formats of the artifacts, as they are registered."""
    held = {artifact.format for artifact in manifest.artifacts}
    return [fmt for fmt in all_formats() if fmt.name in held]


def _best_opened(manifest: Manifest) -> tuple[str | None, str]:
    """The format that most users can open without tierexport, None where there is none, and the library that opens it."""
    opened = [(fmt.name, library) for fmt in _formats(manifest) if (library := fmt.library(manifest.recipe))]
    return min(opened, key=lambda each: each[1] != BEST_KNOWN, default=(None, "tierexport"))


def origin(model: ModelEntry) -> str:
    """The source by its name, its licence, and what its own card leaves unsaid."""
    licence = model.terms
    stated = ", ".join(each for each in (str(licence), licence.name, licence.link) if each) if licence.identifiers else ""
    named = str(model.base_model or (model.name if Path(model.spec).is_absolute() else model.spec))
    unnamed = ", ".join(unstated(model.languages))
    told = [f"licence {stated}" if stated else "", f"languages {unnamed}" if unnamed else "", model.note or ""]
    return f"`{named}`" + (f" ({'; '.join(each for each in told if each)})" if any(told) else "")


# --- the head


def head(manifest: Manifest, found: Verification) -> str:
    """The YAML that a Hugging Face hub reads: where the model comes from, and the results."""
    from huggingface_hub import ModelCardData

    model, formats = manifest.model, [artifact.format for artifact in manifest.artifacts]
    ran = [verdict for verdict in found.verdicts if verdict.status == "ok"]
    results = [
        result for verdict in ran for result in _results(verdict, found.similarity) if math.isfinite(result.metric_value)
    ]
    data = ModelCardData(
        base_model=model.base_model,
        base_model_relation="quantized" if model.base_model else None,
        library_name=_best_opened(manifest)[1],
        **head_fields(model.terms, model.languages, checked=bool(model.base_model and model.revision)),
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "text-embeddings", "quantized", *formats, "tierexport"],
        model_name=f"{model.name}-{manifest.recipe.name}",
        eval_results=results or None,
    )
    return data.to_yaml()


def _results(verdict: Verdict, similarity: str) -> Iterator[Any]:
    """What was measured of an artifact, as entries of the hub's model-index; `similarity`: what its pairs were compared by."""
    from huggingface_hub import EvalResult

    def entry(task: str, dataset: str, metric: str, name: str, value: float) -> Any:
        return EvalResult(
            task_type=task,
            dataset_type=dataset,
            dataset_name=dataset.rpartition("/")[2],
            metric_type=metric,
            metric_name=f"{name} ({verdict.label}, {verdict.device})",
            metric_value=value,
        )

    if verdict.fidelity:
        screen = ("feature-extraction", "tierexport-screen")
        yield entry(*screen, "cosine_similarity", "mean cosine to fp32", verdict.fidelity.cos_mean)
        yield entry(*screen, "top10_retention", "share of the ten nearest neighbours kept", verdict.fidelity.top10_retention)
        if verdict.fidelity.relative_error is not None:
            yield entry(*screen, "relative_error", "relative error of the vectors", verdict.fidelity.relative_error)
    for each in verdict.retrieval:
        yield entry("retrieval", each.dataset, "ndcg_at_10", "NDCG@10", each.ndcg_at_10)
        yield entry("retrieval", each.dataset, "ndcg_at_10_delta", "Δ NDCG@10 vs fp32", each.delta)
        yield entry("retrieval", each.dataset, "recall_at_10", "Recall@10", each.recall_at_10)
    if verdict.sts:
        name = "Spearman of cosines" if similarity == "cosine" else f"Spearman by {SIMILARITIES[similarity].words}"
        yield entry("sts", verdict.sts.dataset, f"{similarity}_spearman", name, verdict.sts.spearman)


# --- the body


def _rounding_lines(artifact: ArtifactEntry) -> Iterator[str]:
    """How many tensors were rounded how, and the quantized ones for which it was to nearest, the first by name."""
    quantized = [each for each in artifact.tensors if not is_unquantized(each.type)]
    fed_back = [each for each in quantized if each.rounding != "nearest"]
    if fed_back:
        nearest = [f"`{each.name}`" + (f" ({each.note})" if each.note else "") for each in quantized if each not in fed_back]
        named = ", ".join(nearest[:MOST_NAMED]) + (f" and {more} more" if (more := len(nearest) - MOST_NAMED) > 0 else "")
        yield (
            f"{artifact.format}: {len(fed_back)} tensors were rounded with error feedback (GPTQ), layer by layer"
            + (", and their scales, biases and norms tuned (distill)" if fed_back[0].rounding == "distill" else "")
            + (f"; to nearest: {named}." if named else ".")
        )
    elif quantized:
        yield f"{artifact.format}: all {len(quantized)} quantized tensors were rounded to nearest."


def _speed_lines(found: Verification) -> Iterator[str]:
    """Speeds, and in words whether an artifact is to be taken for its speed."""
    for verdict in found.verdicts:
        if verdict.speed_ratio is not None and verdict.texts_per_second_ratio_ci:
            low, high = verdict.texts_per_second_ratio_ci
            judged = "the faster one" if low > 1 else "take it for its size, not for speed"
            yield (
                f"{verdict.format} on {verdict.device}: {verdict.texts_per_second:.0f} texts/s, fp32 "
                f"{verdict.reference_texts_per_second:.0f} in the same run ({verdict.speed_ratio:.2f} ×), 95 % interval "
                f"{low:.2f} to {high:.2f}: {judged}."
            )


def snippets(model: ModelEntry) -> dict[str, Any]:
    """What the template needs to write code: quoted texts, prompts by name, the context's length in each dialect."""
    query, passage = (prompt_for(model.prompts, kind) for kind in ("query", "passage"))
    names = {"encode_kwargs": "document" if passage else None, "query_encode_kwargs": "query" if query else None}
    tokens, normalize = model.max_tokens, _normalizes(model)
    separator = "--embd-separator '<#>' " if "\n" in query else ""  # a line break would end the text
    return {
        "question": QUESTION,
        "prompts": {kind: prompt for kind, prompt in (("query", query), ("passage", passage)) if prompt},
        "prompt_names": {key: name for key, name in names.items() if name},
        "quoted": {
            "python": _python(query + QUESTION),
            "shell": shlex.quote(query + QUESTION),
            "json": shlex.quote(
                json.dumps({"input": query + QUESTION, **({} if normalize else {"embd_normalize": -1})}, ensure_ascii=False)
            ),
            "query_prompt": _python(query),
            "passage_prompt": _python(passage),
        },
        "context": {
            "python": f"n_ctx={tokens}, n_batch={tokens}, n_ubatch={tokens}, " if tokens else "",
            "shell": f"-c {tokens} -b {tokens} -ub {tokens} " if tokens else "",
            "separator": separator,
            "tokens": f"max_length={tokens}, " if tokens else "",
        },
        "normalize": normalize,
        "pooled": all(module in POOLED for module in model.modules),
    }


def _normalizes(model: ModelEntry) -> bool:
    """Whether users bring vectors to unit length: for cosines it changes nothing, else the model itself decides."""
    return bool(model.similarity == "cosine" or model.modules[-1:] == ("Normalize",))


def _python(text: str) -> str:
    """A text as a Python literal, whose syntax JSON's strings share."""
    return json.dumps(text, ensure_ascii=False)
