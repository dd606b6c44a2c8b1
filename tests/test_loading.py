"""tierexport.load: an artifact, the GGUF included, is a SentenceTransformer to whoever takes one."""

import gc
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from conftest import Built, encoded, through_llama
from tierexport import load
from tierexport.base.errors import ArtifactError
from tierexport.base.records import Source
from tierexport.datasets.beir import read_beir
from tierexport.datasets.calibration import screen
from tierexport.datasets.textfiles import BUILTIN
from tierexport.metrics.similarity import cosines
from tierexport.model.encoder import open_model
from tierexport.model.reference import Reference
from tierexport.model.source import open_source


def gguf_of(built: Built) -> Path:
    return built.folder / str(built.artifact("gguf")["path"])


def test_a_gguf_is_the_model_that_it_was_made_from(f16: Built, minilm: Source, tmp_path: Path) -> None:
    model = load(str(gguf_of(f16)))
    texts = [*screen()[:20], "a text of many more tokens than the model takes " * 60]
    reference = encoded(open_model(minilm), texts, tmp_path)
    assert (model.max_seq_length, model.get_embedding_dimension()) == (256, 384)
    assert cosines(np.asarray(reference.vectors), model.encode(texts)).min() > 0.9999
    tokens = model.preprocess(texts)
    assert tokens["attention_mask"].sum(1).tolist() == reference.lengths.tolist()


def test_it_gives_what_verification_reads(three_tier: Built, tmp_path: Path) -> None:
    texts = screen()[:10]
    read = through_llama(gguf_of(three_tier), texts, 256, tmp_path).vectors
    vectors = load(str(gguf_of(three_tier))).encode(texts)
    assert cosines(np.asarray(read), vectors).min() > 0.999999
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_prompts_are_the_file_s_own(tiny_model: Path, tmp_path: Path) -> None:
    from conftest import RECIPES, build

    shutil.copytree(tiny_model, tmp_path / "model")
    settings = tmp_path / "model" / "config_sentence_transformers.json"
    document = json.loads(settings.read_text())
    prompts = {"query": "query: ", "document": "passage: ", "clustering": "topic: "}
    settings.write_text(json.dumps({**document, "prompts": prompts, "default_prompt_name": "clustering"}))
    text = (RECIPES / "int8.toml").read_text().replace('"all-MiniLM-L6-v2"', '"model"')
    (tmp_path / "recipe.toml").write_text(text)
    built = build(tmp_path / "recipe.toml", tmp_path / "out")
    gguf, torchao = load(str(gguf_of(built))), load(str(built.folder / "torchao"))
    fp32, source = SentenceTransformer(str(tmp_path / "model"), device="cpu"), open_source(str(tmp_path / "model"))
    for one, prompt in (("encode_query", "query: "), ("encode_document", "passage: "), ("encode", "topic: ")):
        found, expected = (getattr(each, one)(["a text"]) for each in (gguf, fp32))
        assert np.allclose(found, gguf.encode([f"{prompt}a text"], prompt=""))
        assert cosines(expected, found).min() > 0.99
        assert cosines(expected, getattr(torchao, one)(["a text"])).min() > 0.99
        assert cosines(expected, fp32.encode(["a text"], prompt="")).max() < 0.99
    for kind, one in (("query", "encode_query"), ("passage", "encode_document")):  # what figures are about
        made = encoded(open_model(source), ["a text"], tmp_path, Reference(source).prompts[kind])
        assert np.allclose(made.vectors, getattr(fp32, one)(["a text"]), atol=1e-5)


@pytest.mark.parametrize("kind", ["gguf", "torchao"])
def test_sentence_transformers_evaluator_finds_what_verify_finds(three_tier: Built, kind: str, tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    from conftest import run

    folder = Path(shutil.copytree(three_tier.folder, tmp_path / "folder"))
    binary = Path(shutil.copytree(BUILTIN / "retrieval", tmp_path / "binary"))  # the evaluator knows no grades
    qrels = binary / "qrels" / "test.tsv"
    qrels.write_text(re.sub(r"\t2$", "\t1", qrels.read_text("utf-8"), flags=re.M), "utf-8")
    done = run("verify", folder, "--data", binary, "--device", "cpu", "--json")
    results = {each["format"]: each for each in json.loads(done.stdout)["results"]}
    judged = read_beir(binary)
    evaluator = InformationRetrievalEvaluator(
        dict(zip(judged.query_ids, judged.queries, strict=True)),
        dict(zip(judged.document_ids, judged.documents, strict=True)),
        {query: {document for document, grade in grades.items() if grade > 0} for query, grades in judged.qrels.items()},
        ndcg_at_k=[10],
    )
    place = gguf_of(three_tier) if kind == "gguf" else three_tier.folder / "torchao"
    found = evaluator(load(str(place)))
    assert {grade for grades in judged.qrels.values() for grade in grades.values()} <= {0, 1}
    assert found["cosine_ndcg@10"] == pytest.approx(results[kind]["retrieval"][0]["ndcg_at_10"], abs=1e-6)


MTEB = """
import json, sys
import mteb
from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from tierexport import load
from tierexport.datasets.beir import read_beir
from pathlib import Path
from typing import Any

judged = read_beir(Path(sys.argv[2]))

class Local(AbsTaskRetrieval):
    metadata = TaskMetadata(
        name="Local", description="A set in a folder.", reference=None, type="Retrieval", category="t2t", modalities=["text"],
        eval_splits=["test"], eval_langs=["eng-Latn"], main_score="ndcg_at_10",
        dataset={"path": "local/local", "revision": "1"}, date=None, domains=None, task_subtypes=None, license=None,
        annotations_creators=None, dialect=None, sample_creation=None, bibtex_citation="",
    )

    def load_data(self, *_, **__):
        rows = lambda ids, texts: Dataset.from_list([{"id": id, "text": text} for id, text in zip(ids, texts)])
        corpus, queries = rows(judged.document_ids, judged.documents), rows(judged.query_ids, judged.queries)
        split = {"corpus": corpus, "queries": queries, "relevant_docs": judged.qrels, "top_ranked": None}
        self.dataset, self.data_loaded = {"default": {"test": split}}, True

done = mteb.evaluate(load(sys.argv[1]), Local(), cache=None, show_progress_bar=False)
print("\\n" + json.dumps(done.task_results[0].get_score()))
"""


def test_mteb_takes_a_gguf(three_tier: Built, tmp_path: Path) -> None:
    pytest.importorskip("mteb")
    from conftest import run

    folder = Path(shutil.copytree(three_tier.folder, tmp_path / "folder"))
    done = run("verify", folder, "--data", BUILTIN / "retrieval", "--device", "cpu", "--json")
    results = {each["format"]: each for each in json.loads(done.stdout)["results"]}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "MTEB_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", MTEB, str(gguf_of(three_tier)), str(BUILTIN / "retrieval")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == pytest.approx(results["gguf"]["retrieval"][0]["ndcg_at_10"], abs=1e-4)


def test_what_can_t_be_loaded_is_an_error(three_tier: Built, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="name one of them"):
        load(str(three_tier.folder))
    with pytest.raises(ArtifactError, match="neither a GGUF file"):
        load(str(tmp_path))
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(gguf_of(three_tier).read_bytes()[:100_000])
    with pytest.raises(ArtifactError, match=r"cut\.gguf"):
        load(str(cut))


def test_the_folder_opens_by_its_own_name(three_tier: Built) -> None:
    """What a hub's repository is, is the folder: its root leads to the torchao part."""
    from tierexport.base.libraries import import_sentence_transformers

    texts = screen()[:3]
    whole = import_sentence_transformers().SentenceTransformer(str(three_tier.folder), device="cpu")
    assert np.array_equal(whole.encode(texts), load(str(three_tier.folder / "torchao")).encode(texts))
    assert whole.max_seq_length == 256


def test_a_model_that_nobody_holds_takes_no_memory(f16: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(gguf_of(f16).name)

    freed, true = [], llama_cpp.llama_free

    def free(context: Any) -> None:
        freed.append(context)
        true(context)

    monkeypatch.setattr(llama_cpp, "llama_free", free)
    gc.collect()
    before = mapped()
    model = load(str(gguf_of(f16)))
    model.encode(["a text"])
    model.encode(["a text of more words, which takes a context of its own"])
    assert mapped() > before
    assert len(freed) == 1
    del model
    gc.collect()
    assert mapped() == before
    assert len(freed) == 2
