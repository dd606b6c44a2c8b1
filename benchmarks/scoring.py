"""Searching a million packed vectors of 384 dimensions: ours beside faiss's flat index of the same kind, taking turns.

Random codes, 64 unquantized queries, the ten best of each. Printed is the ratio of the medians of a few rounds; binary
is searched by faiss itself. Usage: `python benchmarks/scoring.py [VECTORS]`.
"""

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from tierexport.vectors.codecs import Codec
from tierexport.vectors.index import Index
from tierexport.vectors.packing import packed_bytes
from tierexport.vectors.storage import to_faiss

DIMENSIONS, QUERIES, BEST, ROUNDS = 384, 64, 10, 3


def main(count: int) -> None:
    generator = np.random.default_rng(0)
    queries = generator.standard_normal((QUERIES, DIMENSIONS)).astype(np.float32)
    ends = np.full(DIMENSIONS, 2, np.float32)
    for level in ("int8", "int4", "binary"):
        codec = Codec(level, -ends, ends)
        codes = generator.integers(0, 256, (count, packed_bytes(level, DIMENSIONS)), np.uint8)
        ours, theirs = Index(codec, codes), to_faiss(codec, codes)
        asked = codec.encode(queries) if level == "binary" else queries

        times: dict[str, list[float]] = {"ours": [], "faiss": []}
        for _ in range(ROUNDS):
            if level == "binary":
                times["ours"].append(timed(lambda: ours.hamming(queries, BEST)))  # noqa: B023  # called at once
            else:
                times["ours"].append(timed(lambda: ours.search(queries, BEST)))  # noqa: B023
            times["faiss"].append(timed(lambda: theirs.search(asked, BEST)))  # noqa: B023
        middle = {name: statistics.median(each) for name, each in times.items()}
        print(f"{level:7} {count:,} vectors: {middle['ours'] / middle['faiss']:.2f} of faiss's time", flush=True)


def timed(search: Callable[[], object]) -> float:
    started = time.perf_counter()
    search()
    return time.perf_counter() - started


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
