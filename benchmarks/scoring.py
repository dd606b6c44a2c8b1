"""A million packed vectors of 384 dimensions: searched beside faiss's flat index of the same kind, taking turns, and coded.

Random codes, 64 unquantized queries, the ten best of each. Printed is the ratio of the medians of a few rounds. binary is
searched by faiss itself; beside int2 stands its index of 4 bits (IndexScalarQuantizer, QT_4bit). Coding float32 vectors, of
any length, is compared with numpy's copy of them. Usage: `python benchmarks/scoring.py [VECTORS]`.
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
LEVELS = ("int8", "int4", "int2", "binary")
CODED = 100_000
"""Vectors that are coded, 154 MB."""


def main(count: int) -> None:
    generator = np.random.default_rng(0)
    queries = generator.standard_normal((QUERIES, DIMENSIONS)).astype(np.float32)
    ends = np.full(DIMENSIONS, 2, np.float32)
    given = generator.standard_normal((CODED, DIMENSIONS), np.float32)
    for level in LEVELS:
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
        coding, copy = (
            statistics.median(timed(each) for _ in range(ROUNDS))
            for each in (lambda: codec.coded(given), given.copy)  # noqa: B023
        )
        print(
            f"{level:7} {count:,} vectors: {middle['ours'] / middle['faiss']:.2f} of faiss's time, "
            f"coded in {coding / copy:.1f} x the time of a copy",
            flush=True,
        )


def timed(search: Callable[[], object]) -> float:
    started = time.perf_counter()
    search()
    return time.perf_counter() - started


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
