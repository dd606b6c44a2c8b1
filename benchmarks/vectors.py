"""Ways to choose a codec's bounds, untrained: NDCG@10 of MiniLM's packed vectors on retrieval sets, less fp32's, with 95 %
intervals.

Bounds come from the built-in calibration texts. "both" quantizes queries and documents, "documents" those alone. Usage:
`python benchmarks/vectors.py SET...`.
"""

import itertools
import sys
from typing import Any

from tierexport.datasets.beir import read_retrieval_set
from tierexport.datasets.calibration import calibration_texts
from tierexport.recipe.choices import LEVELS, SCALINGS
from tierexport.recipe.schema import VectorSettings
from tierexport.vectors.encoder import open_encoder
from tierexport.vectors.scaling import takes
from tierexport.verify.stored import Texts, gap

MODEL = "all-MiniLM-L6-v2"
WAYS = [(level, scaling) for level in LEVELS for scaling in SCALINGS if takes(level, scaling)]
KINDS: dict[str, dict[str, Any]] = {
    "per dimension": {},
    "per vector": {"per_vector": True},
    "rotated": {"rotate": True},
    "2 x as wide": {"widen": 2},
    "4 x as wide": {"widen": 4},
}


def main(names: list[str]) -> None:
    encoder = open_encoder(MODEL)
    sets = [Texts.of(encoder, read_retrieval_set(name)) for name in names]
    texts = [text.text for text in calibration_texts("builtin", 400)]
    exact = [each.scored(None, False) for each in sets]
    print(
        "NDCG@10 of fp32:",
        ", ".join(f"{each.data.name} {it.mean('ndcg_at_10'):.4f}" for each, it in zip(sets, exact, strict=True)),
    )
    print(f"{'level':8} {'bounds':8} {'ranges':14} {'bytes':>5} {'both':>30} {'documents':>30}")
    for (level, scaling), (kind, more) in itertools.product(WAYS, KINDS.items()):
        codec = encoder.fit(VectorSettings(level, scaling=scaling, **more), texts)
        gaps = [gap([each.scored(codec, both) for each in sets], exact) for both in (True, False)]
        shown = ("{:+.4f} ({:+.4f} to {:+.4f})".format(*each) for each in gaps)
        print(f"{level:8} {scaling:8} {kind:14} {codec.bytes:5}", *(f"{each:>30}" for each in shown), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
