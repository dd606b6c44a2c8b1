"""Exact search among a million vectors of 384 dimensions that lie on the disk: equal to faiss's, and in how much memory.

Random vectors of unit length and 1,000 queries; ours reads the file chunk by chunk, faiss's flat index (in a process of its
own) holds it. Usage: `python benchmarks/topk.py [VECTORS [QUERIES]]`.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tierexport.base.records import Floats

DIMENSIONS, BEST, CHUNK = 384, 10, 50_000


def vectors(count: int, seed: int) -> Iterator[Floats]:
    """Unit vectors float32, chunk after chunk."""
    generator = np.random.default_rng(seed)
    for first in range(0, count, CHUNK):
        found = generator.standard_normal((min(CHUNK, count - first), DIMENSIONS), np.float32)
        yield found / np.linalg.norm(found, axis=1, keepdims=True)


def mapped(path: Path) -> Floats:
    return np.memmap(path, np.float32, mode="r").reshape(-1, DIMENSIONS)


def search_ours(folder: Path) -> None:
    from tierexport.verify.retrieval import top_documents

    rows, scores = top_documents(mapped(folder / "queries"), mapped(folder / "documents"), BEST)
    np.savez(folder / "ours.npz", rows=rows, scores=scores)


def search_faiss(folder: Path) -> None:
    import faiss

    index = faiss.IndexFlatIP(DIMENSIONS)
    index.add(np.asarray(mapped(folder / "documents")))
    scores, rows = index.search(np.asarray(mapped(folder / "queries")), BEST)
    np.savez(folder / "faiss.npz", rows=rows, scores=scores)


SEARCHES = {"ours": search_ours, "faiss": search_faiss}


def peak(name: str, folder: Path) -> tuple[int, float]:
    """Peak bytes of a search in a process of its own, and its seconds."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, __file__, name, str(folder)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the search by {name} failed")
    return usage.ru_maxrss * 1024, time.perf_counter() - began


def main(count: int, queries: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        subprocess.run([sys.executable, __file__, "make", scratch, str(count), str(queries)], check=True)
        for name in SEARCHES:
            size, seconds = peak(name, folder)
            print(f"{name:5}: peak {size / 1e6:6.0f} MB, {seconds:.0f} s, the file being {count * DIMENSIONS * 4 / 1e6:.0f} MB")
        ours, theirs = (np.load(folder / f"{name}.npz") for name in SEARCHES)
        other = ours["rows"] != theirs["rows"]
        apart = np.abs(ours["scores"] - theirs["scores"]).max()
        print(f"{other.sum()} of {other.size} places have another document; the scores are at most {apart:.1e} apart")


def make(folder: Path, count: int, queries: int) -> None:
    for name, rows, seed in (("documents", count, 0), ("queries", queries, 1)):
        with (folder / name).open("wb") as file:
            for chunk in vectors(rows, seed):
                file.write(chunk.tobytes())


if __name__ == "__main__":
    first = sys.argv[1] if len(sys.argv) > 1 else "1000000"
    if first == "make":
        make(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    elif first in SEARCHES:
        SEARCHES[first](Path(sys.argv[2]))
    else:
        main(int(first), int(sys.argv[2]) if len(sys.argv) > 2 else 1000)
