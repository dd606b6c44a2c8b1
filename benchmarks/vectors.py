"""Ways to choose a codec's bounds, untrained: NDCG@10 of MiniLM's packed vectors on retrieval sets, averaged over them.

Bounds come from the built-in calibration texts. "both" quantizes queries and documents, "documents" those alone. Usage:
`python benchmarks/vectors.py SET...`.
"""

import itertools
import sys
from pathlib import Path

import numpy as np

from tierexport.beir import read_retrieval_set
from tierexport.datasets import calibration_texts
from tierexport.vectoring import Encoder
from tierexport.vectors.codecs import TOP
from tierexport.vectors.scaling import SCALINGS, fit, random_rotation
from tierexport.verify.retrieval import score

MODEL = "all-MiniLM-L6-v2"
KINDS = {"per dimension": (False, False), "per vector": (True, False), "rotated": (False, True)}


def main(names: list[str]) -> None:
    encoder = Encoder(MODEL)
    sets = [read_retrieval_set(name, Path()) for name in names]
    texts = [
        (each, encoder.unit(f"{each.name} queries", "query", each.queries), encoder.unit(each.name, "passage", each.documents))
        for each in sets
    ]
    seen = encoder.unit("texts", "passage", [text.text for text in calibration_texts("builtin", 400, Path())])
    exact = np.mean([score(*each).mean("ndcg_at_10") for each in texts])
    print(f"fp32 {exact:.4f}\n{'level':8} {'bounds':8} {'ranges':14} {'both':>8} {'documents':>10}")
    rotation = random_rotation(seen.shape[1])
    for level, scaling, (kind, (per_vector, rotated)) in itertools.product(TOP, SCALINGS, KINDS.items()):
        codec = fit(seen, level, scaling, per_vector, rotation if rotated else None)
        found: dict[str, list[float]] = {"both": [], "documents": []}
        for data, queries, documents in texts:
            coded = codec.decode(codec.encode(documents))
            found["documents"].append(score(data, queries, coded).mean("ndcg_at_10"))
            found["both"].append(score(data, codec.decode(codec.encode(queries)), coded).mean("ndcg_at_10"))
        both, documents_only = (float(np.mean(each)) - exact for each in found.values())
        print(f"{level:8} {scaling:8} {kind:14} {both:+8.4f} {documents_only:+10.4f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
