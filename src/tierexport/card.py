"""The README.md of an artifact folder: what it is, what it costs, how to load it."""

from collections.abc import Mapping, Sequence
from typing import Any


def render_card(manifest: Mapping[str, Any], verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Markdown from the manifest and the verdicts, and from nothing else."""
    model, recipe = manifest["model"], manifest["recipe"]
    lines = [
        f"# {model['name']}, {recipe['name']}",
        "",
        f"{recipe['description'] or recipe['name']}. Made from `{model['base_model'] or model['spec']}`"
        + (f" (licence {model['licence']})" if model["licence"] else "")
        + f" by tierexport {manifest['tools']['tierexport']}.",
        "",
        "## What it costs and what it keeps",
        "",
        "Measured on 143 sentences against the fp32 model, on the CPU. Stored bits are those of the whole",
        "weight files, embeddings, scales and norms included, per parameter.",
        "",
        "| format | file | bytes | nominal bits | stored bits | same tokens | cos mean | cos min | top-10 kept |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(artifact, verdicts) for artifact in manifest["artifacts"]),
        "",
    ]
    for artifact in manifest["artifacts"]:
        lines += _load_gguf(artifact) if artifact["format"] == "gguf" else _load_torchao(artifact, recipe["torchao"]["layout"])
    lines += ["## How it was made", "", "`recipe.toml` beside this file, with `tierexport build recipe.toml`.", ""]
    return "\n".join(lines)


def _row(artifact: Mapping[str, Any], verdicts: Sequence[Mapping[str, Any]]) -> str:
    verdict = next(each for each in verdicts if each["format"] == artifact["format"])
    if verdict["status"] == "ok":
        proof = (
            f"{'yes' if verdict['tokens_equal'] else 'no'} | {verdict['cos_mean']:.5f} | {verdict['cos_min']:.5f} "
            f"| {verdict['top10_retention']:.3f}"
        )
    else:
        proof = f"{verdict['status']}: {verdict['reason']} | | | "
    return (
        f"| {artifact['format']} | `{artifact['path']}` | {artifact['bytes']:,} | {artifact['nominal_bits']:.2f} "
        f"| {artifact['stored_bits']:.2f} | {proof} |"
    )


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
