"""Vectors in the cache: an answer is taken again only for the same question, asked of the same code."""

import inspect
import itertools
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from conftest import RECIPES, Built, build
from tierexport import pipeline
from tierexport.base import codebase
from tierexport.base.codebase import PACKAGE, code_of, digest_of
from tierexport.base.records import NO_IMATRIX, Encoded, Source
from tierexport.formats import export, format_named
from tierexport.formats.gguf.format import Gguf
from tierexport.formats.gguf.llama import LlamaFile
from tierexport.formats.gguf.worker import run
from tierexport.formats.gguf.worker_client import Worker
from tierexport.formats.job import Job
from tierexport.formats.torchao.format import Torchao
from tierexport.model import reference
from tierexport.model.encoder import encode, open_model
from tierexport.model.reference import ENCODER, Question, Reference, key_of
from tierexport.model.source import open_source
from tierexport.model.vector_store import VectorStore
from tierexport.quantize.lesson import unread
from tierexport.verify.opened import Judged, OpenArtifact

TEXTS = ["a sentence", "another one"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Built:
    """The tiny model at 8 bits, as a GGUF and for torchao."""
    place = tmp_path_factory.mktemp("kept")
    options = ("--set", f"model={tiny_model}", "--set", "calibration.tokens=512")
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
    (path,) = (built.folder / "gguf").iterdir()
    (tmp_path / "texts.jsonl").write_text('"a sentence"\n')
    job = {"texts": str(tmp_path / "texts.jsonl"), "max_tokens": 64, "folder": str(tmp_path / "worker")}
    for name in ("reference", "worker", "gguf", "torchao", "packed"):
        (tmp_path / name).mkdir()
    worker = Worker(path)
    try:
        ran = ran_in(lambda: encode(open_model(minilm), TEXTS, "query: ", VectorStore(tmp_path / "reference")))
        assert {"model/encoder.py", "model/batches.py", "model/vector_store.py"} <= ran <= names(code_of(*ENCODER))
        ran = ran_in(lambda: run(LlamaFile(path), job)) | ran_in(lambda: worker.encode(TEXTS, "", 64, tmp_path / "gguf"))
        assert {"formats/gguf/llama.py", "formats/gguf/worker.py"} <= ran <= names(code_of(*Gguf.reader))
        for name, artifact in (("torchao", built), ("packed", packed)):
            opened = Torchao().open(artifact.folder / "torchao", "cpu")
            ran = ran_in(lambda: opened.encode(TEXTS, "", 64, tmp_path / name))  # noqa: B023  # called at once
            assert {"formats/torchao/load.py", "model/encoder.py"} <= ran <= names(code_of(*Torchao.reader))
        assert "formats/torchao/int4.py" in ran
    finally:
        worker.close()


def ran_in(work: Callable[[], object]) -> set[str]:
    traced = Traced()
    sys.setprofile(traced)
    try:
        work()
    finally:
        sys.setprofile(None)
    return names(traced.files)


OTHER_STAGES = ("report/", "cli/", "publish/", "search/", "training/", "verify/", "pipeline.py")
"""Code that judges, shows or decides, and makes neither vector nor importance."""


@pytest.mark.parametrize("code", [ENCODER, Gguf.reader, Torchao.reader, ("tierexport.formats.gguf.calibrate",)])
def test_a_key_covers_no_code_that_the_result_can_not_depend_on(code: tuple[str, ...]) -> None:
    covered = names(code_of(*code))
    assert not [each for each in covered if each.startswith(OTHER_STAGES)]
    if code in (ENCODER, Gguf.reader, Torchao.reader):
        assert not [each for each in covered if each.startswith(("quantize/", "recipe/", "formats/gguf/write", "artifact/"))]


def test_code_is_followed_wherever_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In functions too, by either form of import, and through packages."""
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


def asked_of(artifact: Judged, device: str, limit: int, prompt: str, texts: list[str]) -> Question:
    """What is asked of an artifact, its texts cut at so many tokens."""
    limited = Reference(replace(open_source("all-MiniLM-L6-v2"), max_tokens=limit))
    return OpenArtifact(artifact, device, limited).question(prompt, texts)


def test_no_two_questions_share_a_key(built: Built, tiny_model: Path, tmp_path: Path) -> None:
    source = open_source(str(tiny_model))
    torchao = Judged("torchao", built.folder / "torchao")
    (path,) = (built.folder / "gguf").iterdir()
    copied = tmp_path / "model"
    shutil.copytree(built.folder / "torchao", copied)
    questions = [
        Reference(source).question("", TEXTS),
        Reference(source).question("a ", ["sentence"]),
        Reference(source).question("", ["a sentence"]),
        Reference(source).question("", ["a ", "sentence"]),
        Reference(source).question("a sentence", []),
        Reference(replace(source, max_tokens=17)).question("", TEXTS),
        Reference(replace(source, pooling="cls")).question("", TEXTS),
        Reference(replace(source, digest=torchao.digest)).question("", TEXTS),
        asked_of(torchao, "cpu", 128, "", TEXTS),
        asked_of(torchao, "cuda", 128, "", TEXTS),
        asked_of(torchao, "cpu", 12, "", TEXTS),
        asked_of(torchao, "cpu", 128, "8", TEXTS),
        asked_of(Judged("gguf", path), "cpu", 128, "", TEXTS),
        asked_of(Judged("torchao", path), "cpu", 128, "", TEXTS),
    ]
    keys = [key_of(each, ENCODER) for each in questions]
    for (one, first), (other, second) in itertools.combinations(enumerate(keys), 2):
        assert first != second, (questions[one], questions[other])
    assert key_of(asked_of(Judged("torchao", copied), "cpu", 128, "", TEXTS), ENCODER) == keys[8]  # wherever it lies


def test_the_libraries_that_tokens_come_from_are_part_of_the_key(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    question = Reference(open_source(str(tiny_model))).question("", TEXTS)
    before = key_of(question, ENCODER)
    monkeypatch.setattr(reference, "_libraries", lambda: {"tokenizers": "0.0.1"})
    assert key_of(question, ENCODER) != before


CHANGES: tuple[tuple[str, set[str]], ...] = (
    ("report/card.md", set()),
    ("report/card.py", set()),
    ("verify/retrieval.py", set()),
    ("formats/gguf/llama.py", {"gguf"}),
    ("formats/torchao/load.py", {"torchao"}),
    ("model/encoder.py", {"fp32", "torchao"}),
    ("base/records.py", {"fp32", "gguf", "torchao"}),
)
"""Files of tierexport, and whose vectors are made anew once they change."""


def test_vectors_are_made_anew_once_the_code_that_reads_them_changes(
    built: Built, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by no other change: a card's wording, or what judges vectors, costs no encoding."""
    package = Path(shutil.copytree(PACKAGE, tmp_path / "tierexport", ignore=shutil.ignore_patterns("__pycache__", "shipped")))
    monkeypatch.setattr(codebase, "PACKAGE", package)
    monkeypatch.setenv("TIEREXPORT_CACHE", str(tmp_path / "cache"))
    (path,) = (built.folder / "gguf").iterdir()
    artifacts = (Judged("gguf", path), Judged("torchao", built.folder / "torchao"))
    try:
        assert made_anew(tiny_model, artifacts, monkeypatch) == {"fp32", "gguf", "torchao"}
        assert made_anew(tiny_model, artifacts, monkeypatch) == set()
        for name, expected in CHANGES:
            (package / name).write_text((package / name).read_text() + "\n# changed\n")
            assert made_anew(tiny_model, artifacts, monkeypatch) == expected, name
            assert made_anew(tiny_model, artifacts, monkeypatch) == set(), name
    finally:
        code_of.cache_clear()
        digest_of.cache_clear()


def test_a_tuned_artifact_is_stale_once_other_code_chooses_its_texts(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And by no change of a card."""
    package = Path(shutil.copytree(PACKAGE, tmp_path / "tierexport", ignore=shutil.ignore_patterns("__pycache__", "shipped")))
    made = pipeline.plan(RECIPES / "four_bit.toml", [f"model={tiny_model}", "rounding=distill"])
    jobs = [Job(plan, made, NO_IMATRIX) for plan in made.formats]
    monkeypatch.setattr(codebase, "PACKAGE", package)

    def keys() -> list[str]:
        code_of.cache_clear()
        digest_of.cache_clear()
        return [export.key_of(format_named(job.plan.format), job) for job in jobs]

    try:
        before = keys()
        with (package / "report/card.py").open("a") as file:
            file.write("# changed\n")
        assert keys() == before
        with (package / Path(inspect.getfile(unread)).relative_to(PACKAGE)).open("a") as file:
            file.write("# changed\n")
        assert not set(keys()) & set(before)
    finally:
        code_of.cache_clear()
        digest_of.cache_clear()


def made_anew(model: Path, artifacts: Sequence[Judged], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Whose vectors of the texts are not taken from the cache, in what counts as a new process."""
    code_of.cache_clear()
    digest_of.cache_clear()
    made: set[str] = set()
    fp32 = Reference(open_source(str(model)))
    with monkeypatch.context() as patch:
        patch.setattr(reference, "encode", noting(made, "fp32", encode))
        fp32.encode("texts", "passage", TEXTS)
    for artifact in artifacts:
        opened = OpenArtifact(artifact, "cpu", fp32)
        with monkeypatch.context() as patch:
            patch.setattr(opened, "made", noting(made, artifact.format, opened.made))
            opened.encode("texts", "passage", TEXTS)
        opened.close()
    return made


def noting(made: set[str], who: str, make: Callable[..., Encoded]) -> Callable[..., Encoded]:
    """`make`, which adds `who` to `made` when it is called."""

    def called(*given: Any) -> Encoded:
        made.add(who)
        return make(*given)

    return called
