"""Models that compare vectors by something else than a cosine: scored so, stored so, loaded so."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import pytrec_eval
import torch
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer, util

from conftest import RECIPES, Built, build, run
from tierexport import load
from tierexport.base.errors import SourceError, VectorError
from tierexport.base.records import Floats, RetrievalSet
from tierexport.datasets.beir import read_beir
from tierexport.datasets.calibration import screen
from tierexport.datasets.textfiles import BUILTIN
from tierexport.metrics.similarity import SIMILARITIES, Similarity, neighbours_kept
from tierexport.model.encoder import open_model
from tierexport.model.source import open_source
from tierexport.recipe.schema import VectorSettings
from tierexport.search.lossless import RetrievalJudge
from tierexport.vectors.codecs import Codec
from tierexport.vectors.encoder import Encoder
from tierexport.vectors.index import Index
from tierexport.vectors.scaling import fit
from tierexport.vectors.storage import read_codec, write_codec
from tierexport.verify.stored import Texts

SETTINGS = ("--set", "calibration.tokens=512", "--set", 'verify.data=["builtin"]', "--set", 'vectors.level="int8"')


def vectors(count: int, seed: int) -> Floats:
    """Of very different lengths, as those of dot-product models are."""
    generator = np.random.default_rng(seed)
    lengths = generator.lognormal(0, 0.7, (count, 1))
    return (generator.standard_normal((count, 24)) * lengths).astype(np.float32)


def compared_by(model: Path, folder: Path, name: str | None, normalize: bool = False) -> Path:
    """A copy of a model folder that compares by another similarity, with its Normalize or without."""
    shutil.copytree(model, folder)
    listed = json.loads((folder / "modules.json").read_text())
    kept = [each for each in listed if normalize or not each["type"].endswith(".Normalize")]
    assert len(kept) == len(listed) - (not normalize)
    (folder / "modules.json").write_text(json.dumps(kept))
    settings = folder / "config_sentence_transformers.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "similarity_fn_name": name}))
    return folder


@pytest.fixture(scope="module")
def dot_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without Normalize, its last layer scaled so that lengths differ."""
    folder = compared_by(tiny_model, tmp_path_factory.mktemp("dot") / "dot", "dot")
    weights = load_file(folder / "model.safetensors")
    name = "encoder.layer.1.output.LayerNorm.weight"
    weights[name] = (weights[name] * np.linspace(0.2, 4, 64)).astype(np.float32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def dot(dot_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    text = (RECIPES / "int8.toml").read_text().replace('"all-MiniLM-L6-v2"', f'"{dot_model}"')
    (folder / "recipe.toml").write_text(text)
    return build(folder / "recipe.toml", folder / "out", *SETTINGS)


def independent(data: RetrievalSet, similar: npt.NDArray[Any]) -> float:
    """trec_eval's NDCG@10 over all documents."""
    run = {
        query: {name: float(value) for name, value in zip(data.document_ids, row, strict=True)}
        for query, row in zip(data.query_ids, similar, strict=True)
    }
    evaluator = pytrec_eval.RelevanceEvaluator({q: dict(grades) for q, grades in data.qrels.items()}, {"ndcg_cut.10"})
    return float(np.mean([each["ndcg_cut_10"] for each in evaluator.evaluate(run).values()]))


def by_the_models_own(model: Path, data: RetrievalSet) -> tuple[float, float]:
    """NDCG@10 as sentence-transformers ranks with this model, and by cosines."""
    opened = SentenceTransformer(str(model), device="cpu")
    queries, documents = opened.encode(list(data.queries)), opened.encode(list(data.documents))
    own = opened.similarity(queries, documents).numpy()
    return independent(data, own), independent(data, util.cos_sim(queries, documents).numpy())


def test_similarities_are_sentence_transformers_own() -> None:
    theirs = {
        "cosine": (util.cos_sim, util.pairwise_cos_sim),
        "dot": (util.dot_score, util.pairwise_dot_score),
        "euclidean": (util.euclidean_sim, util.pairwise_euclidean_sim),
        "manhattan": (util.manhattan_sim, util.pairwise_manhattan_sim),
    }
    assert theirs.keys() == SIMILARITIES.keys()
    a, b = (torch.from_numpy(vectors(9, seed)).double() for seed in (1, 2))
    for name, (every, pairs) in theirs.items():
        ours = Similarity(name, unit=False)
        prepared = [ours.prepared(each.numpy()) for each in (a, b)]
        np.testing.assert_allclose(ours.compared(*prepared), every(a, b), rtol=1e-5)
        np.testing.assert_allclose(ours.pairs(a.numpy(), b.numpy()), pairs(a, b), rtol=1e-5)


def test_where_the_model_normalizes_a_dot_product_is_a_cosine() -> None:
    a, b = vectors(9, 1), vectors(9, 2)
    np.testing.assert_allclose(Similarity("dot", unit=True).pairs(a, b), Similarity().pairs(a, b), rtol=1e-12)


def test_neighbours_are_those_of_the_similarity() -> None:
    a = vectors(60, 3)
    unit = (a / np.linalg.norm(a, axis=1, keepdims=True)).astype(np.float32)
    assert neighbours_kept(a, unit).mean() == 1
    assert neighbours_kept(a, unit, similarity=Similarity("dot", unit=False)).mean() < 0.8


@pytest.mark.parametrize("name", [None, "dot", "euclidean", "manhattan"])
def test_a_source_says_what_its_vectors_are_compared_by(name: str | None, tiny_model: Path, tmp_path: Path) -> None:
    for normalize in (True, False):
        source = open_source(str(compared_by(tiny_model, tmp_path / f"{name}-{normalize}", name, normalize)))
        assert (source.similarity, source.normalizes) == (name or "cosine", normalize)


def test_an_unknown_similarity_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has to be one of cosine, dot, euclidean, manhattan, not 'maxsim'"):
        open_source(str(compared_by(tiny_model, tmp_path / "model", "maxsim")))


def test_a_dot_product_model_is_scored_by_dot(dot: Built, dot_model: Path) -> None:
    expected, by_cosine = by_the_models_own(dot_model, read_beir(BUILTIN / "retrieval"))
    assert abs(expected - by_cosine) > 0.003
    for result in json.loads((dot.folder / "verify.json").read_text())["results"]:
        if result["status"] == "ok":
            (judged,) = result["retrieval"]
            assert judged["reference_ndcg_at_10"] == pytest.approx(expected, abs=1e-5)
            assert judged["ndcg_at_10"] == pytest.approx(expected, abs=0.05)


def test_report_card_and_manifest_say_so_and_the_snippets_agree(dot: Built) -> None:
    assert dot.manifest["model"]["similarity"] == "dot"
    assert json.loads((dot.folder / "verify.json").read_text())["similarity"] == "dot"
    card, page = ((dot.folder / name).read_text() for name in ("README.md", "report.html"))
    assert "Scored by dot product" in card
    assert "Scored by dot product" in page
    code = "".join(card.split("```")[1::2])
    assert "normalize=True" not in code
    assert "functional.normalize" not in code
    assert "normalize_embeddings" not in code
    assert "--embd-normalize -1 " in code
    assert '"embd_normalize": -1' in code


def test_artifacts_are_loaded_as_the_model_is(dot: Built, dot_model: Path) -> None:
    texts = screen()[:20]
    expected = np.linalg.norm(SentenceTransformer(str(dot_model), device="cpu").encode(texts), axis=1)
    for artifact in dot.manifest["artifacts"]:
        opened = load(str(dot.folder / artifact["path"]))
        assert opened.similarity_fn_name == "dot"
        np.testing.assert_allclose(np.linalg.norm(opened.encode(texts), axis=1), expected, rtol=0.05)


def test_codecs_of_a_dot_product_model_keep_lengths(dot: Built, dot_model: Path) -> None:
    codec, _ = read_codec(dot.folder / dot.manifest["vectors"]["path"])
    assert (codec.similarity, dot.manifest["vectors"]["similarity"]) == ("dot", "dot")
    model = SentenceTransformer(str(dot_model), device="cpu")
    data = read_beir(BUILTIN / "retrieval")
    queries, documents = model.encode(list(data.queries)), model.encode(list(data.documents))
    np.testing.assert_allclose(np.linalg.norm(codec.restored(documents), axis=1), np.linalg.norm(documents, axis=1), rtol=0.05)
    expected = independent(data, codec.restored(queries) @ codec.restored(documents).T)
    assert expected == pytest.approx(independent(data, queries @ documents.T), abs=0.02)
    encoder = Encoder(open_source(str(dot_model)))
    texts = Texts.of(encoder, data)
    assert texts.scored(codec, quantized_queries=True).mean("ndcg_at_10") == pytest.approx(expected, abs=1e-3)
    assert texts.scored(None, False).mean("ndcg_at_10") == pytest.approx(by_the_models_own(dot_model, data)[0], abs=1e-5)


def test_the_lossless_search_judges_by_dot(dot_model: Path) -> None:
    source, data = open_source(str(dot_model)), read_beir(BUILTIN / "retrieval")
    judge = RetrievalJudge(open_model(source), source, [data])
    assert judge.reference.mean() == pytest.approx(by_the_models_own(dot_model, data)[0], abs=1e-5)


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
@pytest.mark.parametrize("rotate", [False, True])
def test_an_index_scores_by_the_codecs_similarity(similarity: str, rotate: bool, tmp_path: Path) -> None:
    documents, queries = vectors(500, 4), vectors(7, 5)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((24, 24)))[0].astype(np.float32) if rotate else None
    codec = fit(documents, "int8", "minmax", rotation=rotation, similarity=similarity)
    write_codec(tmp_path / "codec.safetensors", codec)
    assert read_codec(tmp_path / "codec.safetensors")[0].similarity == similarity
    ours = Similarity(similarity, unit=False)
    expected = ours.compared(ours.prepared(queries), ours.prepared(codec.decode(codec.coded(documents))))
    scores, rows = Index(codec, codec.coded(documents)).search(queries, 5)
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :5], rtol=1e-3)
    assert np.array_equal(rows, np.argsort(-expected, axis=1, kind="stable")[:, :5])


def test_what_quantized_vectors_cannot_be_compared_by_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    ends = np.ones(4, np.float32)
    with pytest.raises(VectorError, match="ranges per vector drop"):
        Codec("int8", -ends, ends, per_vector=True, similarity="dot")
    encoder = Encoder(open_source(str(compared_by(tiny_model, tmp_path / "model", "manhattan"))))
    with pytest.raises(VectorError, match="compares vectors by Manhattan distance, and quantized ones can't be"):
        encoder.fit(VectorSettings("int8"), screen()[:20])


def test_a_codec_of_before_is_for_cosines(tmp_path: Path) -> None:
    codec = fit(vectors(50, 6), "int8", "rolling")
    write_codec(tmp_path / "codec.safetensors", codec)
    assert b"similarity" not in (tmp_path / "codec.safetensors").read_bytes()[:500]
    assert read_codec(tmp_path / "codec.safetensors")[0].similarity == "cosine"
    assert replace(codec, similarity="dot").as_json()["similarity"] == "dot"


def test_a_model_that_puts_out_nan_is_refused_with_one_message(tiny_model: Path, tmp_path: Path) -> None:
    """Models may make NaN of some texts (embeddings-benchmark/mteb issue 1389): ranked anyhow, any figure would come out."""
    shutil.copytree(tiny_model, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    (name,) = (each for each in weights if each.endswith("word_embeddings.weight"))
    token = open_model(open_source(str(tiny_model))).tokenizer.convert_tokens_to_ids("harbour")
    weights[name][token] = 3e38
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    (tmp_path / "texts.txt").write_text("the harbour\n" + "another text\n" * 20)
    done = run(
        "vectors", "fit", tmp_path / "model", "--level", "int8", "--texts", tmp_path / "texts.txt", "--out", tmp_path / "c"
    )
    assert done.exit_code == 2, done.output
    assert "model: in fp32 the vectors of 1 of 21 texts hold NaN or infinity, of 'the harbour' for one" in done.stderr
    assert not (tmp_path / "c").exists()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    passages = [json.loads(line) for line in (BUILTIN / "retrieval" / "corpus.jsonl").read_text().splitlines()]
    path.write_text("".join(json.dumps({"query": each["title"], "positive": each["text"]}) + "\n" for each in passages))
    return path


def test_vectors_eval_scores_fp32_by_dot_and_says_so(dot_model: Path, pairs: Path) -> None:
    data = BUILTIN / "retrieval"
    options = ("--pairs", pairs, "--data", data, "--steps", "2", "--every", "1")
    done = run("vectors", "eval", dot_model, *options, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["similarity"] == "dot"
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["fp32"]["average"] == pytest.approx(by_the_models_own(dot_model, read_beir(data))[0], abs=1e-5)
    encoder = Encoder(open_source(str(dot_model)))
    passages = [json.loads(line)["positive"] for line in pairs.read_text().splitlines()]
    codec = fit(encoder.compared("pairs", "passage", passages), "binary", "rolling", similarity="dot")
    opened = SentenceTransformer(str(dot_model), device="cpu")
    queries, documents = (opened.encode(list(texts)) for texts in (read_beir(data).queries, read_beir(data).documents))
    expected = independent(read_beir(data), (queries.astype(np.float64) @ codec.restored(documents).astype(np.float64).T))
    assert rows["binary documents, untrained"]["average"] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("what", ["head", "lora"])
def test_what_is_trained_is_a_model_for_cosines(what: str, dot_model: Path, pairs: Path, tmp_path: Path) -> None:
    options = ("--pairs", pairs, "--level", "int8", "--steps", "2", "--every", "1", "--what", what)
    done = run("vectors", "train", dot_model, *options, "--out", tmp_path / "trained", "--json")
    assert done.exit_code == 0, done.stderr
    opened = SentenceTransformer(str(tmp_path / "trained"), device="cpu")
    assert opened.similarity_fn_name == "cosine"
    np.testing.assert_allclose(np.linalg.norm(opened.encode(screen()[:5]), axis=1), 1, atol=1e-5)
    source = open_source(str(tmp_path / "trained"))
    assert (source.similarity, source.normalizes) == ("cosine", True)
    assert read_codec(tmp_path / "trained" / "codec.safetensors")[0].similarity == "cosine"
