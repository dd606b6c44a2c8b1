"""Retrieval as BEIR and trec_eval score it: own documents, ties, and sets as they are published."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pytest
import pytrec_eval
from pyarrow import parquet

from conftest import run
from tierexport.base.errors import DataError
from tierexport.base.records import Floats, RetrievalSet
from tierexport.datasets.beir import read_beir
from tierexport.datasets.calibration import calibration_texts
from tierexport.metrics.similarity import normalized
from tierexport.vectors.scaling import fit
from tierexport.verify.retrieval import score, without

DOCUMENTS = [{"_id": f"d{i}", "title": f"T{i}", "text": f"passage {i} about topic {i}"} for i in range(15)]
QUERIES = [{"_id": f"q{i}", "text": f"topic {i}"} for i in range(5)]
JUDGED = [(f"q{i}", f"d{i}", 1) for i in range(5)]
HEADER = "query-id\tcorpus-id\tscore\n"


def lines(rows: list[tuple[Any, ...]], separator: str = "\t") -> str:
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


def write_set(
    folder: Path, documents: list[Any] = DOCUMENTS, queries: list[Any] = QUERIES, qrels: str = HEADER + lines(JUDGED)
) -> Path:
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels" / "test.tsv").write_bytes(qrels.encode())
    return folder


def trec_eval(
    data: RetrievalSet, similar: npt.NDArray[Any], left_out: Mapping[str, str] | None = None
) -> dict[str, list[float]]:
    """Trec_eval's own figures with every document in the run, but for one of each query that BEIR drops."""
    dropped = left_out or {}
    run = {
        query: {name: float(value) for name, value in zip(data.document_ids, row, strict=True) if dropped.get(query) != name}
        for query, row in zip(data.query_ids, similar, strict=True)
    }
    evaluator = pytrec_eval.RelevanceEvaluator(
        {q: dict(grades) for q, grades in data.qrels.items()}, {"ndcg_cut.10", "recall.10"}
    )
    found = evaluator.evaluate(run)
    return {name: [found[query][name] for query in data.query_ids] for name in ("ndcg_cut_10", "recall_10")}


def expect(data: RetrievalSet, queries: Floats, documents: Floats, expected: dict[str, list[float]]) -> None:
    found = score(data, queries, documents).per_query
    np.testing.assert_allclose(found["ndcg_at_10"], expected["ndcg_cut_10"], atol=1e-6)
    np.testing.assert_allclose(found["recall_at_10"], expected["recall_10"], atol=1e-6)


# --- ties


def many(documents: int, queries: int) -> RetrievalSet:
    """Documents whose ids are not in the order of their rows; every seventh answers each query."""
    generator = np.random.default_rng(5)
    ids = tuple(f"{name}é" if name % 3 else f"D{name}" for name in generator.permutation(documents))
    qrels = {f"q{i}": {ids[row]: 1 + row % 2 for row in range(i, documents, 7)} for i in range(queries)}
    return RetrievalSet("many", ids, ids, tuple(qrels), tuple(qrels), qrels)


@pytest.mark.parametrize("level", ["binary", "trinary"])
def test_ties_of_few_levels_are_trec_evals_over_all_documents(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes of 6 dimensions: hundreds of documents share a score, and which ten are taken decides the figure."""
    monkeypatch.setattr(sys.modules["tierexport.verify.retrieval"], "CHUNK_ROWS", 50)
    data, generator = many(300, 20), np.random.default_rng(6)
    queries, documents = (generator.standard_normal((count, 6)).astype(np.float32) for count in (20, 300))
    codec = fit(normalized(documents).astype(np.float32), level, "rolling")
    queries, documents = codec.restored(queries), codec.restored(documents)
    expected = trec_eval(data, (normalized(queries) @ normalized(documents).T).astype(np.float32))
    assert 0.1 < np.mean(expected["ndcg_cut_10"]) < 0.9
    expect(data, queries, documents, expected)


def test_scores_that_float32_does_not_tell_apart_are_ties() -> None:
    """Trec_eval keeps scores in float32: a document that is better by 1e-9 is not before the others."""
    data = many(40, 3)
    angles = 0.5 - 1e-9 * np.arange(40)
    documents = np.stack([np.cos(angles), np.sin(angles)], 1)
    documents = np.concatenate([documents, np.zeros((40, 1))], 1).astype(np.float32)
    documents[:, 2] = 1e-5 * np.arange(40)
    queries = np.tile(np.array([[1, 0, 1e-5]], np.float32), (3, 1))
    similar = normalized(queries) @ normalized(documents).T
    assert len(np.unique(similar)) > len(np.unique(similar.astype(np.float32)))
    expect(data, queries, documents, trec_eval(data, similar))


# --- a query's own document


def counterarguments(folder: Path, coincidence: bool) -> RetrievalSet:
    """ArguAna in small: each argument is a query and a document; `coincidence`: ids are the same, texts are not."""
    pro, con = ([f"{side} {i} on topic {i}" for i in range(12)] for side in ("argument", "answer"))
    documents = [
        *({"_id": f"t{i:02d}", "title": "", "text": ("other " if coincidence else "") + each} for i, each in enumerate(pro)),
        *({"_id": f"t{i:02d}-con", "title": "", "text": each} for i, each in enumerate(con)),
    ]
    queries = [{"_id": f"t{i:02d}", "text": f" {each} "} for i, each in enumerate(pro)]
    return read_beir(
        write_set(folder, documents, queries, HEADER + lines([(f"t{i:02d}", f"t{i:02d}-con", 1) for i in range(12)]))
    )


def test_a_query_that_stands_in_the_corpus_is_not_its_own_answer(tmp_path: Path) -> None:
    data = counterarguments(tmp_path / "arguments", coincidence=False)
    assert data.own == data.query_ids
    generator = np.random.default_rng(8)
    queries = generator.standard_normal((12, 5)).astype(np.float32)
    documents = np.concatenate([queries, queries + generator.standard_normal((12, 5))]).astype(np.float32)
    similar = normalized(queries) @ normalized(documents).T
    own = {query: query for query in data.query_ids}
    expected, kept = trec_eval(data, similar, own), trec_eval(data, similar)
    assert np.mean(expected["ndcg_cut_10"]) > np.mean(kept["ndcg_cut_10"]) + 0.05
    expect(data, queries, documents, expected)


def test_ids_that_coincide_by_chance_are_kept(tmp_path: Path) -> None:
    data = counterarguments(tmp_path / "arguments", coincidence=True)
    assert data.own == ()
    generator = np.random.default_rng(8)
    queries, documents = (generator.standard_normal((count, 5)).astype(np.float32) for count in (12, 24))
    expect(data, queries, documents, trec_eval(data, normalized(queries) @ normalized(documents).T))


def test_the_own_document_may_have_a_title(tmp_path: Path) -> None:
    queries = [{"_id": "d1", "text": "passage 1 about topic 1"}, {"_id": "d2", "text": "T2  passage 2 about\ntopic 2"}]
    qrels = HEADER + lines([("d1", "d5", 1), ("d2", "d6", 1)])
    assert read_beir(write_set(tmp_path / "set", queries=queries, qrels=qrels)).own == ("d1", "d2")


# --- what published sets have in them


@pytest.mark.parametrize(
    ("changed", "odd"),
    [
        ({"qrels": HEADER + lines([*JUDGED, ("q0", "gone", 1)])}, "1 judged document is not in the corpus"),
        ({"qrels": HEADER + lines([*JUDGED, ("q77", "d0", 1), ("q78", "d0", 1)])}, "2 judged queries are missing"),
        ({"documents": [*DOCUMENTS, {"_id": "d99", "title": "", "text": ""}]}, "1 empty document"),
        ({"documents": [*DOCUMENTS, {"_id": "d99", "title": None, "text": None}]}, "1 empty document"),
        ({"queries": [*QUERIES[:4], {"_id": "q4", "text": " "}]}, "1 judged query is empty"),
        ({"queries": [*QUERIES, {"_id": "q9", "text": ""}]}, None),
        ({"qrels": HEADER + lines([*JUDGED, JUDGED[0]])}, "1 judgement stands there twice"),
        ({"documents": [*DOCUMENTS, DOCUMENTS[0]]}, "1 text stands there twice"),
        ({"qrels": HEADER + lines([*JUDGED[:4], ("q4", "d4", 0)])}, "1 query has no relevant document and scores 0"),
    ],
)
def test_what_is_unusual_is_read_and_counted(tmp_path: Path, changed: dict[str, Any], odd: str | None) -> None:
    data = read_beir(write_set(tmp_path / "set", **changed))
    assert data.odd == (() if odd is None else (odd,))
    assert data.query_ids == ("q0", "q1", "q2", "q3", "q4")
    assert set(data.document_ids[:15]) == {f"d{i}" for i in range(15)}


@pytest.mark.parametrize(
    "qrels",
    [
        lines(JUDGED),
        lines([("q0", "d0", "1.0"), *JUDGED[1:]]),
        lines([("q0", "d0", "1 "), *JUDGED[1:]]),
        lines([("q0", "d0", "+1"), *JUDGED[1:]]),
        "\ufeff" + (HEADER + lines(JUDGED)).replace("\n", "\r\n"),
        "qid\tdocid\trelevance\n" + lines(JUDGED),
        "query_id\tdoc_id\tlabel\tsplit\n" + lines([(*row, "test") for row in JUDGED]),
        HEADER.strip() + "\tnote\n" + lines([(*row, "2") for row in JUDGED]),
        "\tcorpus-id\tquery-id\tscore\n" + lines([(n, d, q, g) for n, (q, d, g) in enumerate(JUDGED)]),
        lines([(q, 0, d, g) for q, d, g in JUDGED]),
        lines([(q, "Q0", d, g) for q, d, g in JUDGED], " "),
        "\n" + lines(JUDGED, "  "),
        "topic\titer\tdocno\trel\n" + lines([(q, 0, d, g) for q, d, g in JUDGED]),
        HEADER + lines([(f'"{q}"', f'"{d}"', g) for q, d, g in JUDGED]),
    ],
)
def test_judgements_are_read_however_they_are_laid_out(tmp_path: Path, qrels: str) -> None:
    data = read_beir(write_set(tmp_path / "set", qrels=qrels))
    assert data.qrels == {q: {d: g} for q, d, g in JUDGED}


def test_a_judged_document_that_is_missing_counts_in_the_ideal_ranking(tmp_path: Path) -> None:
    """ArguAna judges one that its corpus lacks (beir-cellar/beir issue 101)."""
    data = read_beir(write_set(tmp_path / "set", qrels=HEADER + lines([*JUDGED, ("q0", "gone", 1)])))
    vectors = np.eye(15, dtype=np.float32)
    assert score(data, vectors[:5], vectors).per_query["recall_at_10"].tolist() == [0.5, 1, 1, 1, 1]
    assert score(data, vectors[:5], vectors).per_query["ndcg_at_10"][0] == pytest.approx(1 / (1 + 1 / np.log2(3)))


def test_a_querys_title_is_not_encoded(tmp_path: Path) -> None:
    queries = [{**each, "title": "never read by BEIR"} for each in QUERIES]
    folder = write_set(tmp_path / "set", queries=queries)
    assert read_beir(folder).queries == tuple(each["text"] for each in QUERIES)
    assert {text.text for text in calibration_texts(str(folder), 99) if text.kind == "query"} <= {
        each["text"] for each in QUERIES
    }


def test_a_query_is_followed_by_its_instruction(tmp_path: Path) -> None:
    """As in MTEB (embeddings-benchmark/mteb pull request 408): in a column, or in files of their own."""
    queries = [{**QUERIES[0], "instruction": "Ignore prices."}, *QUERIES[1:]]
    folder = write_set(tmp_path / "set", queries=queries)
    assert read_beir(folder).queries[:2] == ("topic 0 Ignore prices.", "topic 1")
    (folder / "instruction").mkdir()
    (folder / "instruction" / "test.jsonl").write_text('{"query-id": "q1", "instruction": "Only dates."}\n')
    assert read_beir(folder).queries[:2] == ("topic 0 Ignore prices.", "topic 1 Only dates.")


def test_ids_that_pandas_made_numbers_of_are_whole(tmp_path: Path) -> None:
    """A column with a gap becomes float64: 12 is then 12.0 in one file, and "12" in another."""
    for part, rows in {
        "corpus": [{"_id": float(i), "text": f"text {i}"} for i in range(12)],
        "queries": [{"_id": i, "text": f"text {i}"} for i in range(3)],
        "qrels": [{"query-id": float(i), "corpus-id": str(i), "score": "1"} for i in range(3)],
    }.items():
        (tmp_path / "set" / part).mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "set" / part / "test.parquet")
    data = read_beir(tmp_path / "set")
    assert data.qrels == {str(i): {str(i): 1} for i in range(3)}
    assert data.own == ("0", "1", "2")


@pytest.mark.parametrize("names", [("query_id", "doc_id", "relevance"), ("qid", "pid", "label")])
def test_columns_of_other_names_are_found_in_records(tmp_path: Path, names: tuple[str, str, str]) -> None:
    folder = write_set(tmp_path / "set")
    (folder / "qrels" / "test.tsv").unlink()
    rows = [{"query": "its text", **dict(zip(names, row, strict=True))} for row in JUDGED]
    (folder / "qrels" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_beir(folder).qrels == {q: {d: g} for q, d, g in JUDGED}


def test_what_was_unusual_is_said_in_one_line_for_each_set(tmp_path: Path, tiny_model: Path) -> None:
    """On stderr, in the JSON, and for a set that has both: what is odd, and what was left out."""
    queries = [*QUERIES, {"_id": "d3", "text": DOCUMENTS[3]["text"]}]
    documents = [*DOCUMENTS, {"_id": "d99", "title": "", "text": ""}]
    folder = write_set(tmp_path / "odd", documents, queries, HEADER + lines([*JUDGED, ("q0", "gone", 1), ("d3", "d5", 1)]))
    settings = ["--set", f"model={tiny_model}", "--set", 'formats=["torchao"]', "--set", "rounding=nearest"]
    done = run("build", "int8", *settings, "--set", f'verify.data=["{folder}"]', "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.stderr
    line = (
        "odd: 1 judged document is not in the corpus, 1 empty document; "
        "1 query stands in the corpus: not counted as its own answer"
    )
    assert f"tierexport: {line}\n" in done.stderr
    (judged,) = json.loads(done.stdout)["results"][0]["retrieval"]
    assert judged["odd"] == ["1 judged document is not in the corpus", "1 empty document"]
    assert judged["own_documents"] == 1
    for name in ("README.md", "report.html"):
        assert line in (tmp_path / "out" / name).read_text()


def test_an_instruction_that_is_no_text_is_refused(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", queries=[{**QUERIES[0], "instruction": ["Ignore prices."]}, *QUERIES[1:]])
    with pytest.raises(DataError, match="an instruction has to be a text"):
        read_beir(folder)


def test_without_texts_whose_tokens_differ_missing_documents_stay_judged() -> None:
    """Without d1, q0 keeps its judgement of a document that the corpus never had, and q1 has lost its answer."""
    qrels = {"q0": {"d0": 1, "gone": 1}, "q1": {"d1": 1}}
    data = RetrievalSet("set", ("d0", "d1", "d2"), ("a", "b", "c"), ("q0", "q1"), ("x", "y"), qrels, own=("q1",))
    kept = without(data, np.array([True, True]), np.array([True, False, True]))
    assert (kept.qrels, kept.document_ids, kept.own) == ({"q0": {"d0": 1, "gone": 1}}, ("d0", "d2"), ())
