"""The search for a codec, and what it is judged by: neighbours that codes find, and queries that they were not chosen by."""

import json
from pathlib import Path

import numpy as np
import pytest

from conftest import run
from tierexport.base.records import Floats, RetrievalSet, Text
from tierexport.metrics.similarity import normalized
from tierexport.recipe.schema import VectorSettings
from tierexport.search import codecs
from tierexport.vectors.encoder import fitted, open_encoder
from tierexport.vectors.storage import read_codec
from tierexport.verify.stored import Texts, mean_recall


def unit(count: int, dimensions: int = 32, seed: int = 0) -> Floats:
    """Unit vectors whose first dimensions say most."""
    found = np.random.default_rng(seed).standard_normal((count, dimensions)) * np.geomspace(2, 0.2, dimensions)
    return normalized(found.astype(np.float32)).astype(np.float32)


def texts(queries: int = 60, documents: int = 400, own: bool = False) -> Texts:
    """Queries that lie near the documents that answer them; where they are `own`, they are the first documents themselves."""
    found = unit(documents)
    asked = found[:queries] if own else found[:queries] + 0.3 * unit(queries, seed=1)
    ids = tuple(f"d{row}" for row in range(documents))
    names = ids[:queries] if own else tuple(f"q{row}" for row in range(queries))
    qrels = {name: {ids[(row + own) % documents]: 1} for row, name in enumerate(names)}
    return Texts(RetrievalSet("some", ids, ids, names, names, qrels, names if own else ()), asked, found)


# --- neighbours


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("quantized", [False, True])
def test_recall_counts_the_exact_nearest_among_the_first_ten_and_forty(own: bool, quantized: bool) -> None:
    some = texts(own=own)
    codec = fitted(some.documents, VectorSettings("trinary"), "cosine")
    found = some.recall(codec, quantized)
    asked = codec.restored(some.queries) if quantized else some.queries
    scores = [
        normalized(each) @ normalized(other).T
        for each, other in ((some.queries, some.documents), (asked, codec.restored(some.documents)))
    ]
    for row in range(60):
        exact, coded = ([each for each in np.argsort(-each[row], kind="stable") if not own or each != row] for each in scores)
        assert found.plain[row] == pytest.approx(len({*exact[:10]} & {*coded[:10]}) / 10)
        assert found.rescored[row] == pytest.approx(len({*exact[:10]} & {*coded[:40]}) / 10)
    plain, rescored = mean_recall([found])
    assert 0.3 < plain < 0.7 < rescored <= 1


def test_texts_without_judgements_are_ranked_as_fp32_ranks_them(tiny_model: Path) -> None:
    encoder = open_encoder(str(tiny_model))
    passages = [Text(f"{word} {other} and more", "passage") for word in ("sun", "rain", "snow", "wind") for other in "abcdef"]
    alone = Texts.ranked(encoder, "mine", passages)
    assert alone.scored(None, False).mean("ndcg_at_10") == pytest.approx(1)
    assert all(query not in found and len(found) == 10 for query, found in alone.data.qrels.items())
    asked = Texts.ranked(encoder, "mine", [*passages, Text("what falls in winter?", "query")])
    assert (len(asked.data.queries), len(asked.data.documents)) == (1, 24)
    assert asked.scored(None, False).mean("ndcg_at_10") == pytest.approx(1)
    codec = fitted(alone.documents, VectorSettings("binary"), "cosine")
    found = alone.scored(codec, True)
    assert found.mean("recall_at_10") == pytest.approx(alone.recall(codec, True).plain.mean(), abs=0.02)  # ties go otherwise


# --- the search


def test_no_query_chooses_and_judges() -> None:
    some = texts()
    choosing, judging = codecs._halves(some)
    assert {*choosing.data.query_ids}.isdisjoint(judging.data.query_ids)
    assert {*choosing.data.query_ids, *judging.data.query_ids} == {*some.data.query_ids}
    assert judging.data.document_ids == some.data.document_ids


def test_of_many_documents_those_that_are_judged_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "CHOOSING_DOCUMENTS", 20)
    choosing, judging = codecs._halves(some := texts())
    assert 20 <= len(choosing.documents) <= 50
    assert all({*choosing.data.qrels[query]} <= {*choosing.data.document_ids} for query in choosing.data.query_ids)
    rows = [some.data.document_ids.index(name) for name in choosing.data.document_ids]
    assert np.array_equal(choosing.documents, some.documents[rows])
    assert len(judging.documents) == 400


@pytest.mark.parametrize("size", [1, 3, 12, 32, 100])
def test_every_setting_fills_its_bytes_and_no_more(size: int) -> None:
    found = list(codecs._settings(32, size))
    assert len(found) == len(set(found)) == 2 * (5 * 5 + 3)
    for settings in found:
        codec = fitted(unit(300), settings, "cosine")
        assert codec.bytes <= size
        if codec.kept < 32:
            wider = fitted(unit(300), VectorSettings(settings.level, dimensions=codec.kept + 1), "cosine")
            assert wider.bytes > size


def test_what_is_found_is_among_the_best_of_all_settings() -> None:
    some = texts(200, 800)
    trials = codecs._tried([some], some.documents, "cosine", 3, False)
    best = codecs._best(trials, 3, 1)[0]
    every = [fitted(some.documents, settings, "cosine") for settings in codecs._settings(32, 3)]
    scores = [some.scored(codec, True).mean("ndcg_at_10") for codec in every]
    assert max(scores) > min(scores) + 0.1
    assert codecs._ndcg([some], best) > max(scores) - 0.05


def test_a_search_writes_a_codec_and_a_picture(tiny_model: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "codec.safetensors", tmp_path / "frontier.png"
    found = json.loads(
        run("vectors", "search", tiny_model, "--bytes", "24", "--out", out, "--picture", picture, "--json").stdout
    )
    points = found["points"]
    codec, _ = read_codec(out)
    open_encoder(str(tiny_model)).check(codec)
    assert codec.bytes == points[-1]["bytes"] <= 24 == found["budget"]
    assert (codec.level, codec.kept) == (points[-1]["level"], points[-1]["kept"])
    assert [each["bytes"] for each in points] == sorted({each["bytes"] for each in points})
    assert all(
        each["ci_low"] <= each["delta"] <= each["ci_high"] and each["recall"] <= each["rescored"] <= 1 for each in points
    )
    assert found["sets"] == ["builtin"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_search_on_texts_of_the_user_s_own(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("\n".join(f"line {number} of {number % 7} things" for number in range(60)))
    options = ("--texts", tmp_path / "mine.txt", "--out", tmp_path / "c", "--picture", tmp_path / "p.svg", "--asymmetric")
    found = run("vectors", "search", tiny_model, "--bytes", "8", *options)
    assert found.exit_code == 0, found.stderr
    assert "codecs tried" in found.stdout
    assert read_codec(tmp_path / "c")[0].asymmetric
    assert "bytes of a vector" in (tmp_path / "p.svg").read_text()


def test_what_a_search_refuses(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a single line\n")
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for options, told in (
        (("--texts", tmp_path / "one.txt"), "holds 1 passages, and ranking takes two at least"),
        (("--out", taken), "exists and is no codec"),
        (("--picture", tmp_path / "p.bmp"), "can't draw p.bmp"),
    ):
        refused = run("vectors", "search", tiny_model, "--bytes", "8", *options)
        assert refused.exit_code == 2
        assert told in refused.stderr
    assert taken.read_text() == "mine"
