"""What the models weigh that are described in models/, planned from the descriptions alone.

`docs/sizes.md` is generated from it: `python tests/shipped_models.py docs/sizes.md`.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import forked_converter
from tierexport import pipeline
from tierexport.base.shipped import names_of, shipped
from tierexport.formats.gguf import convert
from tierexport.recipe.planned import FormatPlan

NAMES = sorted(names_of("models"), key=str.lower)

NO_GGUF = {
    "all-mpnet-base-v2": "is an MPNet",
    "distiluse-base-multilingual-cased-v2": "has a Dense head with a bias",
    "gtr-t5-base": "has a Dense head after pooling",
    "gtr-t5-large": "has a Dense head after pooling",
    "LaBSE": "has a Dense head with a bias",
}
"""Those that no GGUF holds, and the words of the refusal."""


def planned(name: str, fmt: str) -> FormatPlan:
    """The plan of three_tier for one format."""
    (found,) = pipeline.plan(shipped("recipes") / "three_tier.toml", (f"model={name}", f"formats={json.dumps([fmt])}")).formats
    return found


def row(name: str, gguf: FormatPlan | None, torchao: FormatPlan) -> str:
    """A model's line of the table."""
    layers = 1 + max(each.tensor.layer for each in torchao.rows if each.tensor.layer is not None)
    sizes = (4 * torchao.parameters, gguf and gguf.bytes, torchao.bytes)
    shown = " | ".join(f"{each / 1e6:,.0f}" if each else "" for each in sizes)
    return f"| {name} | {layers} | {torchao.parameters:,} | {shown} |"


def page() -> Iterator[str]:
    """docs/sizes.md, line by line."""
    yield "# What models weigh"
    yield ""
    yield "<!-- `make docs` writes this page from the descriptions in models/, by tests/shipped_models.py. -->"
    yield ""
    yield "The models that `models/` describes, in MB of tensors: in fp32, and as `recipes/three_tier.toml` exports them. A"
    yield "GGUF holds its vocabulary besides. `tierexport plan RECIPE --set model=NAME` shows the same tensor by tensor, for"
    yield "any recipe, before anything of the model is fetched. Where there is no GGUF, the plan says why."
    yield ""
    yield "| model | layers | parameters | fp32 | GGUF | torchao |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name in NAMES:
        yield row(name, None if name in NO_GGUF else planned(name, "gguf"), planned(name, "torchao"))


if __name__ == "__main__":
    setattr(convert, "subprocess", forked_converter.FORKS)  # noqa: B010  # mypy takes a module for no variable
    Path(sys.argv[1]).write_text("\n".join(page()) + "\n", "utf-8")
