"""Fixtures: the real MiniLM, a tiny model with its tokenizer, built artifacts, llama.cpp's programs."""

import contextlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from filelock import FileLock

import forked_converter
from tierexport import cli
from tierexport.base.archive import archive_file, converter
from tierexport.base.errors import MachineError
from tierexport.base.records import Encoded, Source
from tierexport.datasets.textfiles import BUILTIN
from tierexport.formats.gguf import convert
from tierexport.formats.gguf.worker_client import Worker
from tierexport.model.encoder import encode
from tierexport.model.source import open_source
from tierexport.model.vector_store import VectorStore
from tierexport.verify import speed

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
MINILM = "all-MiniLM-L6-v2"


def pytest_configure() -> None:
    """Give each worker of a parallel run cores of its own: torch, ggml and llama.cpp take as many threads as it has cores.

    Two workers that each used all cores would wait for each other at every small product. Subprocesses inherit the cores.
    """
    worker, count = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker is None or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    own = cores[int(worker.removeprefix("gw")) % len(cores) :: count]
    os.sched_setaffinity(0, own)
    os.environ["OMP_NUM_THREADS"] = str(len(own))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, filled by `make` in the worker that asks first; the others wait for it."""
    done = folder.with_name(f"{folder.name}.done")
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session", autouse=True)
def _cache(shared: Path) -> Iterator[None]:
    """A cache of the run's own: nothing is taken from a user's but the pinned archive, by its digest; nothing is left in it."""
    with pytest.MonkeyPatch.context() as patch:
        with contextlib.suppress(MachineError):  # the tests that take it say what is missing
            patch.setenv("TIEREXPORT_ARCHIVE", str(archive_file()))
        patch.setenv("TIEREXPORT_CACHE", str(shared / "cache"))
        patch.setenv("NUMBA_CACHE_DIR", str(shared / "compiled"))  # subprocesses with caches of their own need not compile
        patch.setattr(speed, "SECONDS", 5.0)  # tests share the machine: most measurements would take a minute and give nothing
        yield


def cache_of_its_own(folder: Path) -> Path:
    """A cache with the unpacked converter alone: what is looked for in it, no other test has put there."""
    unpacked = converter()
    shutil.copytree(unpacked, folder / unpacked.name)
    (folder / ".stages").mkdir()
    shutil.copy(unpacked.parent / ".stages" / f"{unpacked.name}.json", folder / ".stages")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Source:
    return open_source(MINILM)


@pytest.fixture(scope="session")
def data() -> Path:
    """Real retrieval data, read in place."""
    folder = Path(os.environ.get("TIEREXPORT_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"the retrieval data is not at {folder} (TIEREXPORT_DATA names it)")
    return folder


@pytest.fixture(scope="session")
def tool() -> Callable[[str], Path]:
    """A program of the pinned llama.cpp by name, as `make tools` built it."""

    def find(name: str) -> Path:
        path = Path(os.environ.get("TIEREXPORT_TOOLS", "")) / "bin" / name
        if not path.is_file():
            pytest.skip(f"{name} is not built: make tools")
        return path

    return find


def run(*arguments: str | Path) -> Result:
    """A tierexport command, in this process."""
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@dataclass(frozen=True)
class Built:
    """An artifact folder with its manifest and verdicts."""

    folder: Path
    manifest: dict[str, Any]
    results: dict[str, dict[str, Any]]

    def artifact(self, name: str) -> dict[str, Any]:
        return next(each for each in self.manifest["artifacts"] if each["format"] == name)


def encoded(model: Any, texts: list[str], folder: Path, prompt: str = "") -> Encoded:
    """What the fp32 reference makes of texts, its files in a new folder below `folder`."""
    where = folder / f"encoded-{uuid.uuid4().hex}"
    where.mkdir()
    return encode(model, texts, prompt, VectorStore(where))


def build(recipe: Path | str, out: Path, *more: str) -> Built:
    """Build through the command line and read back what it wrote."""
    done = run("build", recipe, "--out", out, "--json", *more)
    assert done.exit_code == 0, done.stderr
    printed = json.loads(done.stdout)
    manifest = json.loads((out / "manifest.json").read_text())
    assert printed["manifest"] == manifest
    return Built(out, manifest, {each["format"]: each for each in printed["results"] if each["device"] == "cpu"})


def built_once(shared: Path, name: str, recipe: str, *more: str) -> Built:
    """An artifact that tests of several files look at and none changes, built by the worker that asks first."""

    def make(folder: Path) -> None:
        built = build(RECIPES / recipe, folder / "out", *more)
        (folder / "results.json").write_text(json.dumps(built.results))

    folder = made_once(shared / name, make)
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    return Built(folder / "out", manifest, json.loads((folder / "results.json").read_text()))


@pytest.fixture(scope="session")
def three_tier(shared: Path) -> Built:
    return built_once(shared, "three_tier", "three_tier.toml")


@pytest.fixture(scope="session")
def scored(shared: Path, three_tier: Built) -> Path:
    """The folder of three_tier with retrieval figures."""

    def make(folder: Path) -> None:
        shutil.copytree(three_tier.folder, folder / "three_tier")
        done = run("verify", folder / "three_tier", "--data", BUILTIN / "retrieval", "--device", "cpu")
        assert done.exit_code == 0, done.stderr

    return made_once(shared / "scored", make) / "three_tier"


@pytest.fixture(scope="session")
def f16(shared: Path) -> Built:
    return built_once(shared, "f16", "f16.toml")


@pytest.fixture(scope="session")
def packed(shared: Path) -> Built:
    return built_once(shared, "packed", "four_bit.toml", "--set", "torchao.layout=packed", "--set", 'formats=["torchao"]')


@pytest.fixture(scope="session")
def tiny_model(shared: Path, minilm: Source) -> Path:
    """A random BERT of 2 layers, 64 wide, with MiniLM's tokenizer: a real model folder, made in a second.

    Its weights are drawn ten times as wide as transformers draws them. Otherwise the token embedding, which every layer
    adds to, would be nearly all of a vector, and no test would notice what becomes of the layers.
    """
    folder = made_once(shared / "tiny", lambda folder: random_bert(folder / "tiny-bert", minilm.path, initializer_range=0.2))
    return folder / "tiny-bert"


def random_bert(folder: Path, like: Path, **settings: float) -> None:
    """A model folder with random weights and the tokenizer and pooling of another."""
    from tierexport.base.libraries import import_sentence_transformers

    st = import_sentence_transformers()
    import torch
    from transformers import BertConfig, BertModel

    shutil.copytree(like, folder, ignore=shutil.ignore_patterns("*.safetensors", "README.md"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=30522, **{**sizes, **settings})).save_pretrained(folder)
    assert len(st.SentenceTransformer(str(folder), device="cpu").encode("a sentence")) == 64


@pytest.fixture
def tiny_recipe(tmp_path: Path, tiny_model: Path) -> Path:
    """three_tier on a copy of the tiny model, both in a folder of the test's own."""
    shutil.copytree(tiny_model, tmp_path / "model")
    text = (RECIPES / "three_tier.toml").read_text().replace(f'"{MINILM}"', '"model"')
    path = tmp_path / "recipe.toml"
    path.write_text(text.replace('"30%-80%"', '"0%-50%"').replace('["0%-30%", "80%-100%"]', '"50%-100%"'))
    return path


@pytest.fixture(scope="session")
def folder_of(shared: Path) -> Callable[[str], Path]:
    """The tiny model of a family of families.py, made by the worker that asks first."""

    def made(name: str) -> Path:
        from families import FAMILIES

        plain = name.replace(" ", "-")
        return made_once(shared / f"family-{plain}", lambda folder: FAMILIES[name].make(folder / plain)) / plain

    return made


@pytest.fixture
def _fast_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's converter in processes that are forked, and so need not import torch."""
    monkeypatch.setattr(convert, "subprocess", forked_converter.FORKS)


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that no connection leads from."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def through_llama(path: Path, texts: Sequence[str], limit: int, folder: Path) -> Encoded:
    """Vectors of texts by llama.cpp in its worker."""
    with closing(Worker(path)) as worker:
        return worker.encode(texts, "", limit, folder)
