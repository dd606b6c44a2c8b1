"""Work spread over a Ray cluster gives what one process gives, also where a worker is killed in the middle of it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Built, build, run
from tierexport import pipeline
from tierexport.base.cluster import Cluster, workers_on
from tierexport.base.errors import InputError
from tierexport.base.sizes import parse_size
from tierexport.base.workers import HERE, Workers, cores, threads
from tierexport.datasets.textfiles import BUILTIN
from tierexport.metrics.similarity import Similarity
from tierexport.recipe.schema import VerifySettings
from tierexport.search.mapping import map_model
from tierexport.search.study import Study
from tierexport.verify.retrieval import top_documents

pytest.importorskip("ray", reason="ray is not installed: pip install tierexport[ray]")

SHARD = 24
"""Texts of a shard here: the built-in set's documents make seven of them."""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of what is done on the cluster, in which one process has left nothing."""
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def _ray(elsewhere: Path) -> Iterator[None]:
    """A Ray with room for two workers of one thread on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIEREXPORT_CACHE", str(elsewhere))
        patch.setattr("tierexport.base.cluster.cores", lambda: 2)
        made = Cluster("")
    with closing(made):
        yield


@pytest.fixture
def cluster(_ray: None) -> Iterator[Cluster]:
    """Its workers, which another test's would wait for."""
    with closing(Cluster("")) as made:
        yield made


@pytest.fixture(scope="module")
def built(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    return build("int8", folder / "out", "--set", f"model={tiny_model}", "--set", "rounding=nearest")


@pytest.fixture
def _as_a_worker(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As many cores for this process as each worker has: what a matrix is given is summed up in a part for each core."""
    share = max(cores() // cluster.count, 1)
    monkeypatch.setenv("OMP_NUM_THREADS", str(share))
    with threads(share):
        yield


class Killing:
    """A cluster of whose workers one is killed while it is at its second shard, once."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.count = cluster, cluster.count
        self.killed: list[int] = []

    def map(self, work: Any, items: Iterable[Any], done: Callable[[], None] = lambda: None, gpu: bool = False) -> list[Any]:
        answered: list[int] = []

        def kill() -> None:
            done()
            answered.append(1)
            if len(answered) == 2 and not self.killed:
                first = next(iter(self.cluster._did))
                self.killed.append(int(first.rpartition(" ")[2]))
                os.kill(self.killed[0], signal.SIGKILL)

        return self.cluster.map(work, items, kill, gpu)


def verified(folder: Path, model: Path, into: Path, workers: Workers) -> dict[str, Any]:
    """What verify.json says of a copy of an artifact folder, but for speeds."""
    shutil.copytree(folder, into)
    pipeline.verify_again(into, str(model), VerifySettings((str(BUILTIN / "retrieval"),)), ["cpu"], None, workers)
    found: dict[str, Any] = json.loads((into / "verify.json").read_text())
    for result in found["results"]:
        for name in [name for name in result if name.startswith(("texts_per_second", "reference_texts_per_second"))]:
            del result[name]
    return found


def test_verification_is_the_same_though_a_worker_was_killed(
    built: Built, tiny_model: Path, cluster: Cluster, elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierexport.model.reference.SHARD_TEXTS", SHARD)
    alone = verified(built.folder, tiny_model, tmp_path / "alone", HERE)
    monkeypatch.setenv("TIEREXPORT_CACHE", str(elsewhere))
    workers = Killing(cluster)
    spread = verified(built.folder, tiny_model, tmp_path / "spread", workers)
    assert {result["format"]: result["status"] for result in spread["results"]} == {"gguf": "ok", "torchao": "ok"}
    assert spread == alone
    assert len(workers.killed) == 1
    by_worker = {int(name.rpartition(" ")[2]): did for name, did in cluster._did.items()}
    assert len(by_worker) > 2
    assert os.getpid() not in by_worker


@pytest.mark.usefixtures("_ray")
def test_texts_are_encoded_by_the_command(
    tiny_model: Path, elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As --on and TIEREXPORT_ON say, on the Ray that runs already; at the end each worker's work is told."""
    monkeypatch.setattr("tierexport.model.reference.SHARD_TEXTS", SHARD)
    texts, codec = tmp_path / "texts.txt", tmp_path / "codec.safetensors"
    texts.write_text("".join(f"text {number} about rivers and what lies {number} miles beyond\n" for number in range(90)))
    assert run("vectors", "fit", tiny_model, "--level", "int8", "--count", "50", "--out", codec).exit_code == 0
    command = ("vectors", "encode", tiny_model, texts, "--codec", codec, "--out")
    alone, spread, told = (tmp_path / f"{name}.safetensors" for name in ("alone", "spread", "told"))
    assert run(*command, alone).exit_code == 0
    monkeypatch.setenv("TIEREXPORT_CACHE", str(elsewhere))
    done = run(*command, spread, "--on", "ray")
    assert done.exit_code == 0, done.stderr
    assert spread.read_bytes() == alone.read_bytes()
    parts = [int(line.split(": ")[-1].split()[0]) for line in done.stderr.splitlines() if "note: worker" in line]
    assert sum(parts) == 4
    monkeypatch.setenv("TIEREXPORT_ON", "ray")
    assert run(*command, told).exit_code == 0
    assert told.read_bytes() == alone.read_bytes()


@pytest.mark.usefixtures("_as_a_worker")
def test_trials_are_the_same(
    folder_of: Callable[[str], Path], cluster: Cluster, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a model of few tokens: most of the time of a search is the token table's."""
    model = str(folder_of("RoBERTa"))
    alone, mapped = Study(model).effects, map_model(model)
    monkeypatch.setenv("TIEREXPORT_CACHE", str(elsewhere))
    spread = Study(model, cluster)
    assert spread.effects.options == alone.options
    assert np.array_equal(spread.effects.gram, alone.gram)
    assert "trial" not in vars(spread), "this process has measured nothing itself"
    assert map_model(model, cluster).sensitivities == mapped.sensitivities


def test_documents_are_searched_in_parts(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order of equal scores, of which there are many."""
    generator = np.random.default_rng(0)
    queries = generator.integers(-2, 3, (40, 8)).astype(np.float32)
    generator.integers(-2, 3, (3000, 8)).astype(np.float32).tofile(tmp_path / "vectors")
    documents = np.memmap(tmp_path / "vectors", np.float32, mode="r").reshape(-1, 8)
    order = generator.permutation(3000)
    expected = top_documents(queries, np.array(documents), similarity=Similarity("dot", unit=False), order=order)
    monkeypatch.setattr(sys.modules["tierexport.verify.retrieval"], "PART_ROWS", 700)
    found = top_documents(queries, documents, similarity=Similarity("dot", unit=False), order=order, workers=cluster)
    scores = queries @ documents[order].T
    assert np.array_equal(found[0], order[np.argsort(-scores, 1, kind="stable")[:, :10]])
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])


def test_what_a_worker_raises_is_raised_and_others_go_on(cluster: Cluster) -> None:
    with pytest.raises(InputError) as alone:
        HERE.map(parse_size, ["1MB", "2MB", "many"])
    with pytest.raises(InputError) as spread:
        cluster.map(parse_size, ["1MB", "2MB", "many"])
    assert str(spread.value) == str(alone.value)
    assert cluster.map(parse_size, ["3MB", "1MB", "2MB"]) == [3_000_000, 1_000_000, 2_000_000]


NODES = """
from ray.cluster_utils import Cluster as Nodes
from tierexport.base.cluster import workers_on

small = {"num_cpus": 1, "object_store_memory": 80_000_000}
nodes = Nodes(initialize_head=True, head_node_args={**small, "include_dashboard": False})
nodes.add_node(**small)
try:
    with workers_on(f"ray:{nodes.address}") as workers:
        print(workers.count, workers.map(len, ["a", "bb", "ccc"]))
finally:
    nodes.shutdown()
"""


def test_a_cluster_is_found_at_its_address() -> None:
    """Two nodes, with a worker each."""
    done = subprocess.run([sys.executable, "-c", NODES], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "2 [1, 2, 3]"
    assert done.stderr.count("note: worker") == 2


def test_no_cluster_at_an_address_is_one_message() -> None:
    code = "from tierexport.cli import main; main()"
    command = [sys.executable, "-c", code, "map", "all-MiniLM-L6-v2", "--on", "ray:127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("tierexport: there is no Ray cluster at 127.0.0.1:1: ")


def test_another_place_is_refused(built: Built) -> None:
    with pytest.raises(InputError, match="'slurm' names no place to work at"), workers_on("slurm"):
        pass
    done = run("verify", built.folder, "--on", "slurm")
    assert done.exit_code == 2
    assert "names no place to work at: ray" in done.stderr
