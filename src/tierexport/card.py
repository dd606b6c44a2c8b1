"""The README.md of an artifact folder: what it is, what it costs, how to load it."""

from collections.abc import Iterator, Mapping
from typing import Any

from tierexport.verdicts import Verdict, Verification


def render_card(manifest: Mapping[str, Any], found: Verification) -> str:
    """Markdown from the manifest and the verification, and from nothing else."""
    model, recipe = manifest["model"], manifest["recipe"]
    origin = f"Made from `{model['base_model'] or model['spec']}`" + (
        f" (licence {model['licence']})" if model["licence"] else ""
    )
    lines = [
        f"# {model['name']}, {recipe['name']}",
        "",
        f"{recipe['description'] or recipe['name']}. {origin} by tierexport {manifest['tools']['tierexport']}.",
        "",
        *([] if found.passed else ["**Not verified:** see below what failed.", ""]),
        "## What it costs",
        "",
        "Stored bits are those of the whole weight files, embeddings, scales and norms included, per parameter.",
        "",
        "| format | file | bytes | nominal bits | stored bits |",
        "|---|---|---|---|---|",
        *(_size_row(artifact) for artifact in manifest["artifacts"]),
        "",
        *(line for artifact in manifest["artifacts"] for line in _rounding_lines(artifact)),
        "",
        "## What it keeps",
        "",
        f"Against {found.reference}, on 143 sentences.",
        "",
        "| format | device | same tokens | cos mean | cos min | top-10 kept | 95 % interval | rank correlation |",
        "|---|---|---|---|---|---|---|---|",
        *(_fidelity_row(verdict) for verdict in found.verdicts),
        "",
        *_speed_lines(found),
        "",
        *_retrieval_lines(found),
    ]
    for artifact in manifest["artifacts"]:
        lines += _load_gguf(artifact) if artifact["format"] == "gguf" else _load_torchao(artifact, recipe["torchao"]["layout"])
    lines += ["## How it was made", "", "`recipe.toml` beside this file, with `tierexport build recipe.toml`.", ""]
    return "\n".join(lines)


def _size_row(artifact: Mapping[str, Any]) -> str:
    bits = f"{artifact['nominal_bits']:.2f} | {artifact['stored_bits']:.2f}"
    return f"| {artifact['format']} | `{artifact['path']}` | {artifact['bytes']:,} | {bits} |"


def _rounding_lines(artifact: Mapping[str, Any]) -> Iterator[str]:
    """How many tensors were rounded how, and the crushed ones for which it was to nearest, by name."""
    crushed = [each for each in artifact["tensors"] if each["type"].lower() not in ("f32", "float32", "f16", "float16")]
    fed_back = [each for each in crushed if each["rounding"] != "nearest"]
    if fed_back:
        named = ", ".join(
            f"`{each['name']}`" + (f" ({each['note']})" if each["note"] else "") for each in crushed if each not in fed_back
        )
        yield (
            f"- {artifact['format']}: {len(fed_back)} tensors were rounded with error feedback (GPTQ), layer by layer"
            + (", and their scales, biases and norms tuned (distill)" if fed_back[0]["rounding"] == "distill" else "")
            + (f"; to nearest: {named}." if named else ".")
        )
    elif crushed:
        yield f"- {artifact['format']}: all {len(crushed)} quantized tensors were rounded to nearest."


def _fidelity_row(verdict: Verdict) -> str:
    start = f"| {verdict.format} | {verdict.device} |"
    if verdict.fidelity is None:
        return f"{start} {verdict.status}: {verdict.reason} | | | | | |"
    figures = verdict.fidelity
    low, high = figures.top10_ci
    return (
        f"{start} {verdict.tokens_share:.1%} | {figures.cos_mean:.5f} | {figures.cos_min:.5f} "
        f"| {figures.top10_retention:.3f} | {low:.3f} to {high:.3f} | {figures.rank_correlation:.4f} |"
    )


def _speed_lines(found: Verification) -> list[str]:
    """Speeds, and in words whether an artifact is to be taken for its speed."""
    return [
        f"- {verdict.format} on {verdict.device}: {verdict.texts_per_second:.0f} texts/s, fp32 "
        f"{verdict.reference_texts_per_second:.0f} in the same run ({verdict.speed_ratio:.2f} ×): "
        f"{'the faster one' if verdict.speed_ratio > 1 else 'take it for its size, not for speed'}."
        for verdict in found.verdicts
        if verdict.speed_ratio is not None
    ]


def _retrieval_lines(found: Verification) -> list[str]:
    rows = [
        f"| {each.dataset} | {verdict.format} | {verdict.device} | {each.ndcg_at_10:.4f} | {each.reference_ndcg_at_10:.4f} "
        f"| {each.delta:+.4f} | {each.ci_low:+.4f} to {each.ci_high:+.4f} | {each.recall_at_10:.4f} |"
        for verdict in found.verdicts
        for each in verdict.retrieval_shown
    ]
    if not rows:
        return []
    head = "| set | format | device | NDCG@10 | fp32 | difference | 95 % interval | Recall@10 |"
    return ["## Retrieval", "", head, "|---|---|---|---|---|---|---|---|", *rows, ""]


def _load_gguf(artifact: Mapping[str, Any]) -> list[str]:
    return [
        "## Load the GGUF",
        "",
        "```python",
        "from llama_cpp import Llama",
        "",
        f'model = Llama("{artifact["path"]}", embedding=True, flash_attn=True, verbose=False)',
        'vector = model.embed("How do I fix a flat tire?", normalize=True)',
        "```",
        "",
        f"or `llama-embedding -m {artifact['path']} -p 'How do I fix a flat tire?'`.",
        "",
    ]


def _load_torchao(artifact: Mapping[str, Any], layout: str) -> list[str]:
    if layout == "packed":
        opening = ["import tierexport", "", f'model = tierexport.load("{artifact["path"]}", device="cpu")']
        remark = (
            "Packed: two 4-bit values per byte. Stock sentence-transformers runs it on CUDA with mslk installed; "
            "`tierexport.load` runs it anywhere, on dequantized weights where there is no 4-bit kernel."
        )
    else:
        opening = [
            "from sentence_transformers import SentenceTransformer",
            "",
            f'model = SentenceTransformer("{artifact["path"]}")',
        ]
        remark = (
            "Portable: stock sentence-transformers and transformers load it wherever torchao is installed. torchao keeps "
            'one byte per value here, 4-bit tiers included; for small files take the GGUF, or `torchao.layout = "packed"`.'
        )
    return [
        "## Load the torchao folder",
        "",
        "```python",
        *opening,
        'vectors = model.encode(["How do I fix a flat tire?"])',
        "```",
        "",
        remark,
        "",
    ]
