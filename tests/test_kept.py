"""Vectors in the cache: an answer is taken again only for the same question, asked of the same code."""

import itertools
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from conftest import Built, build
from tierexport.codebase import PACKAGE, code_of, digest_of
from tierexport.encode import VectorStore, encode, open_model
from tierexport.records import Source
from tierexport.source import open_source
from tierexport.verify import kept, llama_worker
from tierexport.verify.kept import Judged, artifact_question, key_of, reference_question

TEXTS = ["a sentence", "another one"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Built:
    """The tiny model at 8 bits, as a GGUF and for torchao."""
    place = tmp_path_factory.mktemp("kept")
    options = ("--set", f"model={tiny_model}", "--set", "calibration.count=8")
    return build("int8", place / "out", *options, "--set", "rounding=nearest")


def names(paths: Any) -> set[str]:
    return {Path(path).relative_to(PACKAGE).as_posix() for path in paths}


class Traced:
    """Notes which of tierexport's files run."""

    def __init__(self) -> None:
        self.files: set[str] = set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            self.files.add(frame.f_code.co_filename)


def test_all_code_that_makes_a_vector_is_covered(built: Built, packed: Built, minilm: Source, tmp_path: Path) -> None:
    """Whatever runs while texts are encoded: by the reference, by a GGUF in the worker, and by torchao in both layouts."""
    traced = Traced()
    (path,) = (built.folder / "gguf").iterdir()
    job = tmp_path / "job.json"
    (tmp_path / "worker").mkdir()
    (tmp_path / "texts.jsonl").write_text('"a sentence"\n')
    asked = {"path": str(path), "texts": str(tmp_path / "texts.jsonl"), "max_tokens": 64, "gpu": False}
    job.write_text(json.dumps(asked | {"folder": str(tmp_path / "worker")}))
    for name in ("reference", "gguf", "torchao", "packed"):
        (tmp_path / name).mkdir()
    sys.setprofile(traced)
    try:
        encode(open_model(minilm), TEXTS, "query: ", VectorStore(tmp_path / "reference"))
        kept.read(Judged("gguf", path), "cpu", TEXTS, "", 64, tmp_path / "gguf")
        kept.read(Judged("torchao", built.folder / "torchao"), "cpu", TEXTS, "", 64, tmp_path / "torchao")
        kept.read(Judged("torchao", packed.folder / "torchao"), "cpu", TEXTS, "", 64, tmp_path / "packed")
        llama_worker.main(str(job))
    finally:
        sys.setprofile(None)
    ran = names(traced.files)
    assert {"encode.py", "formats/int4.py", "formats/torchao.py", "formats/llama.py", "verify/llama_worker.py"} <= ran
    assert ran <= names(code_of(kept.__name__))


def test_wording_discards_no_vectors() -> None:
    covered = names(code_of(kept.__name__))
    assert not [each for each in covered if each.startswith(("report/", "card", "cli", "hubs/")) and each != "cardhead.py"]
    assert not {"verify/gates.py", "verify/speed.py", "verify/verifier.py", "verdicts.py", "pipeline.py"} & covered


def test_code_is_followed_wherever_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In functions too, by either form of import, and through packages."""
    import tierexport.codebase as codebase

    package = tmp_path / "tierexport"
    for name, text in {
        "__init__.py": "",
        "a.py": "def f():\n    from tierexport.sub import b\n",
        "sub/__init__.py": "from tierexport.e import E\n",
        "sub/b.py": "import tierexport.c\n",
        "c.py": "from tierexport.sub import thing\n",
        "d.py": "",
        "e.py": "E = 1\n",
    }.items():
        (package / name).parent.mkdir(exist_ok=True, parents=True)
        (package / name).write_text(text)
    monkeypatch.setattr(codebase, "PACKAGE", package)
    code_of.cache_clear()
    digest_of.cache_clear()
    try:
        found = {path.relative_to(package).as_posix() for path in code_of("tierexport.a")}
        assert found == {"a.py", "sub/b.py", "c.py", "sub/__init__.py", "e.py"}
        before = digest_of("tierexport.a")
        for name, changes in (("d.py", False), ("sub/b.py", True)):
            (package / name).write_text((package / name).read_text() + "# changed\n")
            code_of.cache_clear()
            digest_of.cache_clear()
            assert (digest_of("tierexport.a") != before) == changes
    finally:
        code_of.cache_clear()
        digest_of.cache_clear()


def test_no_two_questions_share_a_key(built: Built, tiny_model: Path, tmp_path: Path) -> None:
    source = open_source(str(tiny_model))
    torchao = Judged("torchao", built.folder / "torchao")
    (path,) = (built.folder / "gguf").iterdir()
    copied = tmp_path / "model"
    shutil.copytree(built.folder / "torchao", copied)
    questions = [
        reference_question(source, "", TEXTS),
        reference_question(source, "a ", ["sentence"]),
        reference_question(source, "", ["a sentence"]),
        reference_question(source, "", ["a ", "sentence"]),
        reference_question(source, "a sentence", []),
        reference_question(replace(source, max_tokens=17), "", TEXTS),
        reference_question(replace(source, pooling="cls"), "", TEXTS),
        reference_question(replace(source, digest=torchao.digest), "", TEXTS),
        artifact_question(torchao, "cpu", 128, "", TEXTS),
        artifact_question(torchao, "cuda", 128, "", TEXTS),
        artifact_question(torchao, "cpu", 12, "", TEXTS),
        artifact_question(torchao, "cpu", 128, "8", TEXTS),
        artifact_question(Judged("gguf", path), "cpu", 128, "", TEXTS),
        artifact_question(Judged("torchao", path), "cpu", 128, "", TEXTS),
    ]
    keys = [key_of(each) for each in questions]
    for (one, first), (other, second) in itertools.combinations(enumerate(keys), 2):
        assert first != second, (questions[one], questions[other])
    assert key_of(artifact_question(Judged("torchao", copied), "cpu", 128, "", TEXTS)) == keys[8]  # wherever it lies


def test_the_libraries_that_tokens_come_from_are_part_of_the_key(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    question = reference_question(open_source(str(tiny_model)), "", TEXTS)
    before = key_of(question)
    monkeypatch.setattr(kept, "_libraries", lambda: {"tokenizers": "0.0.1"})
    assert key_of(question) != before
