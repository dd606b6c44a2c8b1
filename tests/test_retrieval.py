"""Retrieval: measures equal independent evaluators', statistics their definitions, bad sets are refused."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sklearn.metrics import ndcg_score

from tierexport.base.errors import DataError
from tierexport.base.records import Floats, RetrievalSet
from tierexport.datasets.beir import read_beir, read_retrieval_set
from tierexport.datasets.textfiles import BUILTIN
from tierexport.verify.intervals import difference
from tierexport.verify.retrieval import score, top_documents

RNG = np.random.default_rng(3)


def vectors(count: int, seed: int) -> Floats:
    return np.random.default_rng(seed).normal(size=(count, 24)).astype(np.float32)


def near_answers(data: RetrievalSet) -> tuple[Floats, Floats]:
    """Random documents, and queries drawn towards their answers, so that the scores are middling."""
    documents = vectors(len(data.documents), 1)
    row = {name: index for index, name in enumerate(data.document_ids)}
    noise = vectors(len(data.queries), 2)
    drawn = [max((grade, name) for name, grade in data.qrels[query].items())[1] for query in data.query_ids]
    return noise + 0.6 * documents[[row[name] for name in drawn]], documents


@pytest.mark.parametrize("name", ["scifact", "built-in, graded"])
def test_measures_equal_independent_evaluators(name: str, request: pytest.FixtureRequest) -> None:
    """NDCG (graded) scikit-learn's; Recall and MRR sentence-transformers'."""
    folder = request.getfixturevalue("data") / "scifact" if name == "scifact" else BUILTIN / "retrieval"
    data = read_beir(folder)
    queries, documents = near_answers(data)
    found = score(data, queries, documents)
    grades = np.zeros((len(data.queries), len(data.documents)))
    row = {document: index for index, document in enumerate(data.document_ids)}
    for index, query in enumerate(data.query_ids):
        for document, grade in data.qrels[query].items():
            grades[index, row[document]] = grade
    similar = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        documents / np.linalg.norm(documents, axis=1, keepdims=True)
    ).T
    assert 0.2 < found.mean("ndcg_at_10") < 0.95
    assert found.mean("ndcg_at_10") == pytest.approx(ndcg_score(grades, similar, k=10), abs=1e-6)
    recall, mrr = independent_recall_and_mrr(data, similar)
    assert found.mean("recall_at_10") == pytest.approx(recall, abs=1e-6)
    assert found.mean("mrr_at_10") == pytest.approx(mrr, abs=1e-6)


def independent_recall_and_mrr(data: RetrievalSet, similar: Floats) -> tuple[float, float]:
    relevant = {query: {name for name, grade in data.qrels[query].items() if grade > 0} for query in data.query_ids}
    evaluator = InformationRetrievalEvaluator(
        dict(zip(data.query_ids, data.queries, strict=True)),
        dict(zip(data.document_ids, data.documents, strict=True)),
        relevant,
        precision_recall_at_k=[10],
        mrr_at_k=[10],
    )
    results = [
        [{"corpus_id": data.document_ids[row], "score": float(scores[row])} for row in np.argsort(-scores)[:10]]
        for scores in similar
    ]
    measured = evaluator.compute_metrics(results)
    return float(measured["recall@k"][10]), float(measured["mrr@k"][10])


def test_the_built_in_set_is_whole() -> None:
    data = read_beir(BUILTIN / "retrieval")
    assert (len(data.documents), len(data.queries)) == (160, 60)
    assert {grade for grades in data.qrels.values() for grade in grades.values()} == {1, 2}
    assert data.documents[0].startswith(
        json.loads((BUILTIN / "retrieval" / "corpus.jsonl").read_text().splitlines()[0])["title"]
    )


def test_the_built_in_set_has_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "builtin").mkdir()
    monkeypatch.chdir(tmp_path)
    found = read_retrieval_set("builtin")
    assert (found.name, found.documents) == ("builtin", read_beir(BUILTIN / "retrieval").documents)


def test_a_link_keeps_its_name_and_what_lies_beside_it(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "store" / "aaa", CORPUS, QUERIES, QRELS)
    (folder / "qrels").rename(tmp_path / "store" / "bbb")
    for name, there in (("mine", "aaa"), ("mine-qrels", "bbb")):
        (tmp_path / name).symlink_to(tmp_path / "store" / there)
    assert read_retrieval_set(str(tmp_path / "mine")).name == "mine"


def test_search_in_chunks_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, documents = vectors(7, 4), vectors(100, 5)
    documents[50] = documents[3]  # a tie
    expected, _ = top_documents(queries, documents)
    monkeypatch.setattr(sys.modules["tierexport.verify.retrieval"], "CHUNK_ROWS", 9)
    found, cosines = top_documents(queries, documents)
    assert (found == expected).all()
    assert (np.diff(cosines, axis=1) <= 0).all()


def test_fewer_documents_than_depth() -> None:
    rows, _ = top_documents(vectors(2, 6), vectors(3, 7))
    assert sorted(rows[0].tolist()) == [0, 1, 2]


def test_no_difference_is_certain() -> None:
    assert difference([0.5] * 9, [0.5] * 9) == difference([1.0], [1.0])
    assert difference([0.5] * 9, [0.5] * 9).p_value == 1


def test_the_interval_and_the_test_are_near_students() -> None:
    """On many well-behaved queries bootstrap and permutation agree with the t distribution."""
    reference = RNG.uniform(size=400)
    found = reference + RNG.normal(0.004, 0.05, size=400)
    judged = difference(reference, found)
    student = stats.ttest_rel(found, reference)
    low, high = student.confidence_interval(0.95)
    assert judged.mean == pytest.approx(float((found - reference).mean()))
    assert judged.ci_low == pytest.approx(low, abs=4e-4)
    assert judged.ci_high == pytest.approx(high, abs=4e-4)
    assert judged.p_value == pytest.approx(student.pvalue, abs=0.02)
    assert difference(reference, found) == judged  # the same every time


def test_the_interval_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(11)
    covered = 0
    for _ in range(60):
        delta = generator.normal(0.01, 0.1, size=80)
        judged = difference(np.zeros(80), delta)
        covered += judged.ci_low <= 0.01 <= judged.ci_high
    assert 50 <= covered <= 60


# --- sets that contradict themselves


def write_set(folder: Path, corpus: str, queries: str, qrels: str) -> Path:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(corpus)
    (folder / "queries.jsonl").write_text(queries)
    (folder / "qrels" / "test.tsv").write_text(qrels)
    return folder


CORPUS = '{"_id": "d1", "title": "T", "text": "one"}\n{"_id": "d2", "text": "two"}\n'
QUERIES = '{"_id": "q1", "text": "first"}\n{"_id": "q2", "text": "second"}\n'
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\n"


@pytest.mark.parametrize(
    ("corpus", "queries", "qrels", "message"),
    [
        (CORPUS, QUERIES, "q1\td9\t1\nq2\td8\t1\n", "judges 2 documents, none of which the corpus has, 'd8' for one"),
        (CORPUS, QUERIES, "q8\td1\t1\nq9\td1\t1\n", "judges 2 queries, none of which the set has, 'q8' for one"),
        (CORPUS, QUERIES, QRELS + "q1\td1\t2\n", "line 3: 'd1' is judged twice for 'q1', 1 and 2"),
        (CORPUS, QUERIES, QRELS + "q1 d2 1\n", "line 3 is not QUERY, DOCUMENT and a whole grade"),
        (CORPUS, QUERIES, QRELS + "q1\td2\thigh\n", "line 3 is not QUERY, DOCUMENT and a whole grade"),
        (CORPUS, QUERIES, QRELS + "q1\td2\t3000000000\n", "a whole grade up to 1000"),
        (CORPUS, QUERIES, "q1\td1\t3000000000\n" + QRELS, "line 1 is not QUERY, DOCUMENT and a whole grade up to 1000"),
        (CORPUS, QUERIES, QRELS + "q1\td2\t--5\n", "line 3 is not QUERY, DOCUMENT and a whole grade"),
        (CORPUS, QUERIES, "query-id\tcorpus-id\tscore\n", "judges nothing"),
        (CORPUS, QUERIES, QRELS + "q1\td2\t0.5\n", "line 3 is not QUERY, DOCUMENT and a whole grade"),
        (CORPUS, QUERIES, "q1\td1\thigh\n", "line 1 is not QUERY, DOCUMENT and a whole grade"),
        (CORPUS, QUERIES, QRELS + '"q1\td1\t1\n', "line 3 is not QUERY, DOCUMENT and a whole grade"),
        (CORPUS, QUERIES, QRELS + "q1\td" + "2" * 140_000 + '"\t1\n', "field larger than field limit"),
        (CORPUS, QUERIES, QRELS + "\td2\t1\n", "line 3 is not QUERY, DOCUMENT and a whole grade"),
        (CORPUS + '{"_id": "d1", "text": "again"}\n', QUERIES, QRELS, "entry 3: the id 'd1' is there twice, with different"),
        (CORPUS, QUERIES + '{"_id": "q1", "text": "again"}\n', QRELS, "entry 3: the id 'q1' is there twice, with different"),
        (CORPUS + '{"_id": "d3"}\n', QUERIES, QRELS, 'every line needs a "text", and one has None'),
        (CORPUS + '{"_id": "\\ud83d", "text": "x"}\n', QUERIES, QRELS, "half of a character or a zero byte"),
        (CORPUS, QUERIES, QRELS + "q1\td\0\t1\n", "half of a character or a zero byte"),
        (CORPUS, QUERIES + '{"text": "nameless"}\n', QRELS, 'entry 3 has no "_id"'),
        ("", QUERIES, QRELS, "corpus.jsonl holds nothing"),
    ],
)
def test_a_set_that_contradicts_itself_is_refused(tmp_path: Path, corpus: str, queries: str, qrels: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        read_beir(write_set(tmp_path / "set", corpus, queries, qrels))
    assert message in str(error.value)


def test_a_missing_split_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", CORPUS, QUERIES, QRELS)
    with pytest.raises(DataError, match="it has no qrels/dev.tsv"):
        read_beir(folder, "dev")
    (folder / "corpus.jsonl").write_bytes(CORPUS.encode() + b'{"_id": "d3", "text": "\xff"}\n')
    with pytest.raises(DataError, match="is not UTF-8"):
        read_beir(folder)


def test_compressed_sets_are_read(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", CORPUS, QUERIES, QRELS)
    plain = read_beir(folder)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    assert read_beir(folder) == plain
    assert (plain.documents, plain.queries, plain.qrels) == (("T one", "two"), ("first",), {"q1": {"d1": 1}})
