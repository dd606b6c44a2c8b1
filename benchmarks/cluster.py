"""Encoding on two workers of one core beside one: the first of SciFact's documents, by a local Ray of its own for each.

Workers have their model loaded before the clock runs. Each side gets the cores that it has workers for, and no more; "alone" is
this process on one core, without Ray. Sides take turns. Usage: `python benchmarks/cluster.py [BEIR_DIR [TEXTS]]`.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from tierexport.base.cluster import Cluster
from tierexport.base.workers import HERE, Workers
from tierexport.datasets.beir import read_beir
from tierexport.model import reference
from tierexport.model.reference import Reference
from tierexport.model.source import open_source

SHARD, ROUNDS = 64, 2
SIDES = ("alone", "one", "two")


def seconds(side: str, data: Path, count: int) -> float:
    """Of encoding so many documents into an empty cache, in a process of its own."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, __file__, side, str(data), str(count)]
        environment = {**os.environ, "TIEREXPORT_CACHE": cache}
        return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def measure(side: str, data: Path, count: int) -> float:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[: 2 if side == "two" else 1])
    if side == "alone":
        return encoded(HERE, data, count)
    with closing(Cluster("")) as cluster:
        return encoded(cluster, data, count)


def encoded(workers: Workers, data: Path, count: int) -> float:
    setattr(reference, "SHARD_TEXTS", SHARD)  # noqa: B010  # what it imports
    documents = read_beir(data).documents
    model = Reference(open_source("all-MiniLM-L6-v2"), workers=workers)
    model.encode("warm up", "passage", documents[-2 * SHARD :])
    began = time.perf_counter()
    model.encode("documents", "passage", documents[:count])
    return time.perf_counter() - began


def main(data: Path, count: int) -> None:
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(ROUNDS):
        for side in SIDES:
            times[side].append(seconds(side, data, count))
            print(f"{side:5}: {count / times[side][-1]:.1f} texts per second", flush=True)
    middle = {side: statistics.median(each) for side, each in times.items()}
    print(f"two workers: {middle['one'] / middle['two']:.2f} times as fast as one, which takes", end=" ")
    print(f"{middle['one'] / middle['alone']:.2f} of the time of one process without Ray")


if __name__ == "__main__":
    root = Path(__file__).parents[1]
    if len(sys.argv) > 1 and sys.argv[1] in SIDES:
        print(measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
    else:
        given = sys.argv[1:] + [str(root.parent / "shared" / "data" / "scifact"), "384"][len(sys.argv) - 1 :]
        main(Path(given[0]), int(given[1]))
