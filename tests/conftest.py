"""Fixtures: the real MiniLM, a tiny model with its tokenizer, built artifacts, llama.cpp's programs."""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tierexport import cli
from tierexport.base.records import Encoded, Source
from tierexport.formats.gguf.worker_client import Worker
from tierexport.model.encoder import encode
from tierexport.model.source import open_source
from tierexport.model.vector_store import VectorStore
from tierexport.verify import speed

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
MINILM = "all-MiniLM-L6-v2"


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the session's own: nothing is taken from a user's, nothing left in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIEREXPORT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(speed, "SECONDS", 5.0)  # tests share the machine: most measurements would take a minute and give nothing
        yield


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


@pytest.fixture(scope="session")
def three_tier(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(RECIPES / "three_tier.toml", tmp_path_factory.mktemp("three_tier") / "out")


@pytest.fixture(scope="session")
def f16(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(RECIPES / "f16.toml", tmp_path_factory.mktemp("f16") / "out")


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("packed") / "out"
    return build(RECIPES / "four_bit.toml", out, "--set", "torchao.layout=packed", "--set", 'formats=["torchao"]')


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, minilm: Source) -> Path:
    """A random BERT of 2 layers, 64 wide, with MiniLM's tokenizer: a real model folder, made in a second."""
    from tierexport.base.libraries import import_sentence_transformers

    st = import_sentence_transformers()
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny") / "tiny-bert"
    shutil.copytree(minilm.path, folder, ignore=shutil.ignore_patterns("*.safetensors", "README.md"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=30522, **sizes)).save_pretrained(folder)
    assert len(st.SentenceTransformer(str(folder), device="cpu").encode("a sentence")) == 64
    return folder


@pytest.fixture
def tiny_recipe(tmp_path: Path, tiny_model: Path) -> Path:
    """three_tier on a copy of the tiny model, both in a folder of the test's own."""
    shutil.copytree(tiny_model, tmp_path / "model")
    text = (RECIPES / "three_tier.toml").read_text().replace(f'"{MINILM}"', '"model"')
    path = tmp_path / "recipe.toml"
    path.write_text(text.replace('"30%-80%"', '"0%-50%"').replace('["0%-30%", "80%-100%"]', '"50%-100%"'))
    return path


def through_llama(path: Path, texts: Sequence[str], limit: int, folder: Path) -> Encoded:
    """Vectors of texts by llama.cpp in its worker."""
    with closing(Worker(path)) as worker:
        return worker.encode(texts, "", limit, folder)
