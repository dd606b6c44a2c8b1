"""The verifier: nothing is trusted, each failure is told, gates decide the exit code."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel

from conftest import MINILM, RECIPES, Built, build, encoded, random_bert, run
from manifests import manifest_of
from tierexport import pipeline
from tierexport.artifact.verdicts import Fidelity, Verdict
from tierexport.base.digests import folder_digests
from tierexport.base.errors import DataError
from tierexport.base.locks import locked
from tierexport.base.records import Encoded, RetrievalSet, Source
from tierexport.datasets.beir import read_beir
from tierexport.datasets.calibration import screen
from tierexport.datasets.sts import read_sts
from tierexport.datasets.textfiles import BUILTIN
from tierexport.model.batches import length_sorted
from tierexport.model.encoder import open_model
from tierexport.model.vector_store import VectorStore
from tierexport.recipe.gates import Gate
from tierexport.verify import gates
from tierexport.verify.fidelity import measure, same_tokens, token_examples
from tierexport.verify.intervals import correlation_interval, mean_interval
from tierexport.verify.retrieval import Vectors, judge, score

RETRIEVAL = BUILTIN / "retrieval"


def test_the_reference_equals_sentence_transformers(minilm: Source, tmp_path: Path) -> None:
    texts = [*screen(), "a long text " * 300, ""]
    expected = SentenceTransformer(str(minilm.path), device="cpu").encode(texts)
    found = encoded(open_model(minilm), texts, tmp_path)
    assert np.abs(found.vectors - expected).max() < 1e-5


def test_prompts_reach_the_reference(minilm: Source, tmp_path: Path) -> None:
    model = SentenceTransformer(str(minilm.path), device="cpu")
    expected = model.encode(["a text"], prompt="find: ")
    assert np.abs(encoded(model, ["a text"], tmp_path, "find: ").vectors - expected).max() < 1e-5


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 1000))
def test_batches_hold_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(length_sorted(lengths, budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget for batch in batches)


def test_blocks_don_t_show(minilm: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = open_model(minilm), screen()[:30]
    whole = encoded(model, texts, tmp_path)
    monkeypatch.setattr("tierexport.model.encoder.SHARD_TEXTS", 7)
    parts = encoded(model, texts, tmp_path)
    assert np.abs(whole.vectors - parts.vectors).max() < 1e-5
    assert (whole.tokens == parts.tokens).all()
    assert whole.ids(3) == parts.ids(3) == model.tokenizer(texts[3])["input_ids"]


def test_a_model_of_several_languages_is_screened_in_each(tiny_model: Path, tmp_path: Path) -> None:
    """Those that its card names, English always; figures by language in verify.json, table, page and card."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: [de, el, English]\n---\n")
    options = ("--set", f"model={folder}", "--set", "rounding=nearest")
    built = build(RECIPES / "int8.toml", tmp_path / "out", *options)
    for verdict in built.results.values():
        found = {each["language"]: each for each in verdict["languages"]}
        assert {name: each["texts"] for name, each in found.items()} == {"en": 143, "de": 14, "el": 14}
        assert verdict["texts"] == len(verdict["cosines"]) == 171
        assert found["el"]["cos_mean"] == pytest.approx(np.mean(verdict["cosines"][-14:]))
        assert found["de"]["cos_mean_ci"][0] < found["de"]["cos_mean"] < found["de"]["cos_mean_ci"][1]
        assert {each["tokens_equal"] for each in found.values()} == {1}
    shown = f"{built.results['gguf']['languages'][1]['cos_mean']:.5f}"
    for page in ("README.md", "report.html"):
        text = (tmp_path / "out" / page).read_text("utf-8")
        assert "German" in text
        assert shown in text
    assert "German" in run("verify", tmp_path / "out").stdout


def test_long_texts_are_judged_where_a_model_reads_them(minilm: Source, three_tier: Built, tmp_path: Path) -> None:
    """By length in verify.json, table, page and card; nothing of a model that reads 256 tokens."""
    folder = tmp_path / "model"
    random_bert(folder, minilm.path, initializer_range=0.2, max_position_embeddings=2048)
    for file, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        settings = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(settings | {key: 2048}))
    built = build(RECIPES / "f16.toml", tmp_path / "out", "--set", f"model={folder}")
    for verdict in built.results.values():
        assert [each["texts"] for each in verdict["lengths"]] == [8, 2]
        for length, each in zip((512, 2048), verdict["lengths"], strict=True):
            assert 0.9 * length < each["tokens"] <= length
            assert 0.9999 < each["cos_min"] <= each["cos_mean"]
    for page in ("README.md", "report.html"):
        assert f"{built.results['gguf']['lengths'][1]['tokens']:,}" in (tmp_path / "out" / page).read_text("utf-8")
    assert "by length of texts" in run("verify", tmp_path / "out").stdout
    assert three_tier.results["gguf"]["lengths"] == []


def test_the_relative_error_tells_what_a_cosine_hides(tiny_model: Path, tmp_path: Path) -> None:
    """A model whose vectors all lie close together, for its last LayerNorm adds a constant: the same weights, rounded alike."""
    close = Path(shutil.copytree(tiny_model, tmp_path / "close"))
    model = BertModel.from_pretrained(close)
    with torch.no_grad():
        model.encoder.layer[-1].output.LayerNorm.bias += torch.randn(64, generator=torch.Generator().manual_seed(0)) * 20
    model.save_pretrained(close)
    options = ("--set", "rounding=nearest", "--set", 'verify.gates=["relative_error <= 0.1"]')
    plain, shifted = (
        build(RECIPES / "int8.toml", tmp_path / f"{folder.name}-out", "--set", f"model={folder}", *options)
        for folder in (tiny_model, close)
    )
    gates = json.loads((shifted.folder / "verify.json").read_text())["gates"]
    for name, found in shifted.results.items():
        before = plain.results[name]
        assert 1 - found["cos_mean"] < (1 - before["cos_mean"]) / 50
        assert found["relative_error"] == pytest.approx(before["relative_error"], rel=0.2)
        assert found["relative_error_ci"][0] < found["relative_error"] < found["relative_error_ci"][1]
        assert found["relative_error"] in [each["value"] for each in gates if each["format"] == name]
        shown = "{:.5f} ({:.5f} to {:.5f})".format(found["relative_error"], *found["relative_error_ci"])
        for page in ("README.md", "report.html"):
            assert shown in (shifted.folder / page).read_text("utf-8")
        assert shown in run("verify", shifted.folder).stdout


def test_verify_scores_retrieval_and_rewrites_the_reports(three_tier: Built, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(three_tier.folder, tmp_path / "three_tier"))
    (tmp_path / "sts.tsv").write_text(
        "score\tone\tother\n5.0\tA cat.\tA cat sits.\n0.1\tA cat.\tTax law.\n3.0\tA dog runs.\tA cat runs.\n"
    )
    done = run("verify", folder, "--data", RETRIEVAL, "--sts", tmp_path / "sts.tsv", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((folder / "verify.json").read_text())
    by_place = {(each["format"], each["device"]): each for each in found["results"]}
    gguf = by_place["gguf", "cpu"]
    assert gguf["cos_mean"] == pytest.approx(three_tier.results["gguf"]["cos_mean"], abs=1e-9)
    (judged,) = gguf["retrieval"]
    assert (judged["dataset"], judged["queries"], judged["documents"]) == ("retrieval", 60, 160)
    assert 0.8 < judged["reference_ndcg_at_10"] < 0.95
    assert judged["ci_low"] <= judged["delta"] <= judged["ci_high"]
    assert judged["delta"] == pytest.approx(np.mean(judged["deltas"]))
    assert judged["delta"] == pytest.approx(judged["ndcg_at_10"] - judged["reference_ndcg_at_10"])
    assert gguf["sts"]["pairs"] == 3
    assert gguf["sts"]["ci_low"] <= gguf["sts"]["delta"] <= gguf["sts"]["ci_high"]
    assert gguf["cos_mean_ci"][0] < gguf["cos_mean"] < gguf["cos_mean_ci"][1]
    assert gguf["top10_ci"][0] < gguf["top10_retention"] < gguf["top10_ci"][1]
    page = (folder / "report.html").read_text()
    assert "http://" not in page
    assert "https://" not in page  # it asks for nothing over the network
    assert f"{judged['delta']:+.4f} ({judged['ci_low']:+.4f} to {judged['ci_high']:+.4f}" in page
    assert page.count('class="tier b4"') == 2 * 18
    card = (folder / "README.md").read_text()
    assert f"{judged['ndcg_at_10']:.4f}" in card
    ours, fp32 = gguf["texts_per_second"], gguf["reference_texts_per_second"]
    if ours is None:
        assert gguf["texts_per_second_reason"]
        assert "- gguf on cpu" not in card
    else:
        low, high = gguf["texts_per_second_ratio_ci"]
        assert max(high * fp32 / ours - 1, 1 - low * fp32 / ours) <= 0.1
        speeds = (
            f"{ours:.0f} texts/s, fp32 {fp32:.0f} in the same run ({ours / fp32:.2f} ×), 95 % interval {low:.2f} to {high:.2f}"
        )
        assert f"- gguf on cpu: {speeds}" in card
    for name in ("gguf", "torchao"):
        assert by_place[name, "cuda"]["status"] in ("not run", "ok")


def test_anybodys_files_are_verified_against_a_named_model(three_tier: Built, minilm: Source) -> None:
    path = three_tier.folder / three_tier.artifact("gguf")["path"]
    asked = run("verify", path)
    assert asked.exit_code == 2
    assert "name its fp32 model with --model" in asked.stderr
    for target in (path, three_tier.folder / "torchao"):
        done = run("verify", target, "--model", "all-MiniLM-L6-v2", "--device", "cpu", "--json")
        assert done.exit_code == 0, done.stderr
        (result,) = json.loads(done.stdout)["results"]
        assert result["cos_mean"] == three_tier.results[result["format"]]["cos_mean"]


def test_an_artifact_of_another_model_is_refused(three_tier: Built, tiny_model: Path) -> None:
    other = run("verify", three_tier.folder, "--model", tiny_model)
    assert other.exit_code == 2
    assert "was made from another model" in other.stderr
    path = three_tier.folder / three_tier.artifact("gguf")["path"]
    foreign = run("verify", path, "--model", tiny_model, "--device", "cpu")
    assert foreign.exit_code == 1
    assert "vectors of 384 dimensions, where the fp32 model has 64" in foreign.stderr


def judged_after(folder: Path, *options: str | Path) -> tuple[int, dict[str, dict[str, Any]], str]:
    """Verify on CPU: exit code, results by format, stderr."""
    done = run("verify", folder, "--device", "cpu", "--json", *options)
    assert "Traceback" not in done.stderr
    return done.exit_code, {each["format"]: each for each in json.loads(done.stdout)["results"]}, done.stderr


HARMS: dict[str, Callable[[bytes], bytes]] = {
    "header": lambda raw: raw[:200] + b"\xff" * 64 + raw[264:],
    "half": lambda raw: raw[: len(raw) // 2],
    "empty": lambda raw: b"",
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_artifact_is_an_error_and_the_other_is_judged(three_tier: Built, tmp_path: Path, harm: str) -> None:
    folder = Path(shutil.copytree(three_tier.folder, tmp_path / "harmed"))
    places = {"gguf": folder / three_tier.artifact("gguf")["path"], "torchao": folder / "torchao" / "model.safetensors"}
    for name, other in (("gguf", "torchao"), ("torchao", "gguf")):
        whole = places[name].read_bytes()
        places[name].write_bytes(HARMS[harm](whole))
        code, results, said = judged_after(folder)
        places[name].write_bytes(whole)
        assert (code, results[name]["status"], results[other]["status"]) == (1, "failed", "ok"), results[name]["reason"]
        assert f"{name} on cpu: failed: {results[name]['reason']}" in said
        assert results[other]["cos_mean"] == pytest.approx(three_tier.results[other]["cos_mean"], abs=1e-9)
        assert json.loads((folder / "manifest.json").read_text())["verified"] is False


def test_an_artifact_that_is_gone_is_an_error_and_the_other_is_judged(three_tier: Built, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(three_tier.folder, tmp_path / "gone"))
    (folder / three_tier.artifact("gguf")["path"]).unlink()
    code, results, _ = judged_after(folder)
    assert (code, results["gguf"]["status"], results["torchao"]["status"]) == (1, "failed", "ok")
    assert "is missing" in results["gguf"]["reason"]


def test_a_text_beyond_the_context_fails_the_gguf_alone(tiny_recipe: Path) -> None:
    """The folder's GGUF is replaced by that of a model with 40 positions; llama.cpp would abort on a longer text."""
    folder, short = build(tiny_recipe, tiny_recipe.parent / "out").folder, tiny_recipe.parent / "model"
    shutil.copytree(short, tiny_recipe.parent / "whole")
    config = BertConfig.from_pretrained(short, max_position_embeddings=40)
    BertModel(config).save_pretrained(short)
    assert "cut texts at 256 tokens, but only 40 positions can be used: texts are cut at 40" in run("plan", tiny_recipe).stderr
    made = build(tiny_recipe, tiny_recipe.parent / "short", "--set", 'formats=["gguf"]')
    (path,) = folder.glob("gguf/*.gguf")
    shutil.copy(made.folder / made.artifact("gguf")["path"], path)
    shutil.rmtree(short)
    shutil.copytree(tiny_recipe.parent / "whole", short)
    code, results, _ = judged_after(folder, "--data", RETRIEVAL)
    assert (code, results["gguf"]["status"], results["torchao"]["status"]) == (1, "failed", "ok")
    assert "but the model was trained for 40" in results["gguf"]["reason"]


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "is not a manifest that tierexport wrote"),
        (json.dumps(manifest_of({"gguf": "../../etc/x"}).as_json()), "lies outside the folder"),
        (json.dumps({**manifest_of({}).as_json(), "verson": 1}), "verson: Unexpected keyword argument): build it again"),
        (json.dumps({**manifest_of({}).as_json(), "version": 2}), "is of version 2, and version 1 is read: build it again"),
        ('{"model": {}, "artifacts": []}', "is of an earlier tierexport, and version 1 is read: build it again"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, manifest: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    done = run("verify", tmp_path)
    assert done.exit_code == 2
    assert message in done.stderr


def test_two_sets_of_one_name_are_refused(three_tier: Built) -> None:
    done = run("verify", three_tier.folder, "--data", RETRIEVAL, "--data", RETRIEVAL)
    assert done.exit_code == 2
    assert "two retrieval sets are named 'retrieval'" in done.stderr


# --- gates


def build_with(gate: str, recipe: Path, out: Path) -> tuple[int, str]:
    done = run("build", recipe, "--out", out, "--set", f'verify.gates=["{gate}"]', "--set", 'formats=["gguf"]')
    return done.exit_code, done.stderr


def test_gates_decide_the_exit_code_and_mark_the_artifact(tiny_recipe: Path) -> None:
    out = tiny_recipe.parent / "out"
    assert build_with("cos_mean >= 0.5", tiny_recipe, out)[0] == 0
    assert json.loads((out / "manifest.json").read_text())["verified"] is True
    code, said = build_with("cos_mean >= 1.5", tiny_recipe, out)
    assert code == 1
    assert re.search(r"the gate cos_mean >= 1.5 failed: it is [01]\.\d{5}\n", said)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["verified"] is False  # kept, and marked
    assert "**Not verified against" in (out / "README.md").read_text()
    code, said = build_with("ndcg_delta_ci_low >= -0.005", tiny_recipe, out)
    assert code == 2
    assert "the gate ndcg_delta_ci_low >= -0.005 takes a retrieval set, and none is named: set verify.data" in said
    assert json.loads((out / "manifest.json").read_text()) == manifest


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("top10_retained >= 0.9", "'top10_retained' is not measured; did you mean 'top10_retention'?"),
        ("cos_mean > 0.9", "has to be METRIC >= NUMBER"),
        ("cos_mean >= high", "has to be METRIC >= NUMBER"),
        ("cos_mean >= 0.9.9", "has to be METRIC >= NUMBER"),
        ("cos_mean >= .", "has to be METRIC >= NUMBER"),
    ],
)
def test_gates_are_read_strictly(gate: str, message: str) -> None:
    done = run("plan", RECIPES / "f16.toml", "--set", f'verify.gates=["{gate}"]')
    assert done.exit_code == 2
    assert message in done.stderr


def test_gates_compare_as_they_say() -> None:
    verdict = Verdict(
        "gguf", "cpu", "ok", tokens_share=1.0, fidelity=Fidelity(9, 0.9, 0.8, 0.7, 0.6, 0.5, (0.8, 1), (0.5, 0.7))
    )
    gone = Verdict("gguf", "cuda", "not run", "no device")
    judged = gates.judge([Gate("cos_min", ">=", 0.7), Gate("cos_min", ">=", 0.71), Gate("cos_p1", "<=", 0.8)], [verdict, gone])
    assert [(each.value, each.passed) for each in judged] == [(0.7, True), (0.7, False), (0.8, True)]


# --- where tokenizers differ


def store(folder: Path, tokens: list[list[int]], vectors: np.ndarray) -> Encoded:
    folder.mkdir()
    kept = VectorStore(folder)
    kept.add(tokens, vectors)
    return kept.close(1.0)


def test_differing_tokens_are_counted_and_shown(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    ours = store(tmp_path / "a", [[1, 2], [3], [4, 5, 6], []], vectors)
    theirs = store(tmp_path / "b", [[1, 2], [9], [4, 5], []], vectors)
    same = same_tokens(ours, theirs)
    assert same.tolist() == [True, False, False, True]
    shown = token_examples(["w", "x", "y", "z"], ours, theirs, same)
    assert shown[0] == "'x': [3] in the reference, [9] here"
    assert len(shown) == 2


def test_retrieval_is_also_judged_without_the_texts_whose_tokens_differ(tmp_path: Path) -> None:
    """Equal to scoring the smaller set by itself."""
    generator = np.random.default_rng(3)
    data = read_beir(RETRIEVAL)
    queries, documents = (generator.normal(size=(len(each), 8)).astype(np.float32) for each in (data.queries, data.documents))
    moved = documents + generator.normal(size=documents.shape).astype(np.float32) * 0.3
    tokens = [[1]] * len(data.documents)
    reference = Vectors(store(tmp_path / "q", [[1]] * len(queries), queries), store(tmp_path / "d", tokens, documents))
    same = Vectors(reference.queries, store(tmp_path / "s", tokens, moved))
    assert judge(data, reference, same).same_tokens is None

    other_query = store(tmp_path / "oq", [[2], *[[1]] * (len(queries) - 1)], queries)
    other_documents = store(tmp_path / "od", [*[[9]] * 40, *tokens[40:]], moved)
    judged = judge(data, reference, Vectors(other_query, other_documents))
    assert judged.tokens_equal == pytest.approx(1 - 41 / (len(queries) + len(documents)))
    kept = set(data.document_ids[40:])
    qrels = {query: {name: grade for name, grade in data.qrels[query].items() if name in kept} for query in data.query_ids[1:]}
    qrels = {query: grades for query, grades in qrels.items() if max(grades.values(), default=0) > 0}
    rows = [data.query_ids.index(query) for query in qrels]
    smaller = RetrievalSet(
        "smaller", data.document_ids[40:], data.documents[40:], tuple(qrels), tuple(data.queries[row] for row in rows), qrels
    )
    assert judged.same_tokens is not None
    verdict = Verdict("gguf", "cpu", "ok", retrieval=(judged,))
    assert [each.dataset for each in verdict.retrieval_shown] == ["retrieval", "retrieval, same tokens only"]
    assert (judged.same_tokens.queries, judged.same_tokens.documents) == (len(qrels), 120)
    assert judged.same_tokens.ndcg_at_10 == score(smaller, queries[rows], moved[40:]).mean("ndcg_at_10")
    assert judged.same_tokens.reference_ndcg_at_10 == score(smaller, queries[rows], documents[40:]).mean("ndcg_at_10")


def test_rank_correlation_is_spearmans_over_all_pairs(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    vectors = generator.normal(size=(20, 8)).astype(np.float32)
    moved = vectors + generator.normal(size=vectors.shape).astype(np.float32) * 0.3
    found = measure(store(tmp_path / "a", [[1]] * 20, vectors), store(tmp_path / "b", [[1]] * 20, moved))
    pairs = [(i, j) for i in range(20) for j in range(i + 1, 20)]
    cosine = [[float(x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j])) for i, j in pairs] for x in (vectors, moved)]
    assert found.rank_correlation == pytest.approx(stats.spearmanr(*cosine).statistic, abs=1e-4)


def test_the_intervals_equal_scipys(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    human = generator.normal(size=120)
    reference, found = human + generator.normal(size=120), human + generator.normal(size=120) * 1.3
    low, high = mean_interval(reference)
    student = stats.ttest_1samp(reference, 0).confidence_interval()
    assert (low, high) == pytest.approx((student.low, student.high), abs=0.02)
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5)

    def difference(human: np.ndarray, reference: np.ndarray, found: np.ndarray) -> float:
        return float(stats.spearmanr(human, found).statistic - stats.spearmanr(human, reference).statistic)

    expected = stats.bootstrap(
        (human, reference, found), difference, paired=True, vectorized=False, method="percentile", n_resamples=3000, rng=5
    ).confidence_interval
    assert correlation_interval(human, reference, found) == pytest.approx((expected.low, expected.high), abs=0.02)


def test_sts_files_are_checked(tmp_path: Path) -> None:
    (tmp_path / "sts.tsv").write_text("1.0\ta\tb\nx\tc\td\n")
    with pytest.raises(DataError, match="line 2 is not SCORE"):
        read_sts(tmp_path / "sts.tsv")
    (tmp_path / "sts.tsv").write_text("1\ta\tb\n2\tc\td\nnan\te\tf\n3\tg\th\n")
    with pytest.raises(DataError, match="line 3 is not SCORE"):
        read_sts(tmp_path / "sts.tsv")
    (tmp_path / "sts.tsv").write_text("score\tone\tother\n")
    with pytest.raises(DataError, match="holds 0 sentence pairs"):
        read_sts(tmp_path / "sts.tsv")


def test_a_recipe_names_its_own_retrieval_sets(tiny_recipe: Path) -> None:
    shutil.copytree(RETRIEVAL, tiny_recipe.parent / "set")
    built = build(tiny_recipe, tiny_recipe.parent / "out", "--set", "verify.data=set", "--set", 'formats=["gguf"]')
    assert built.results["gguf"]["retrieval"][0]["dataset"] == "set"
    assert read_beir(tiny_recipe.parent / "set").name == "set"


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """An artifact folder whose recipe has a retrieval set of its own and a gate on it."""
    folder = tmp_path_factory.mktemp("scored")
    shutil.copytree(tiny_model, folder / "model")
    shutil.copytree(RETRIEVAL, folder / "set")
    text = (RECIPES / "int8.toml").read_text().replace(f'"{MINILM}"', '"model"')
    (folder / "recipe.toml").write_text(text + '[verify]\ndata = ["set"]\ngates = ["ndcg_delta >= -0.5"]\n')
    return build(folder / "recipe.toml", folder / "out", "--set", 'formats=["gguf"]').folder


@pytest.fixture
def folder(scored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scored, tmp_path / "folder"))


def test_a_folder_is_verified_on_the_sets_of_its_recipe(folder: Path) -> None:
    before = json.loads((folder / "verify.json").read_text())["results"][0]["retrieval"]
    done = run("verify", folder, "--device", "cpu", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["results"][0]["retrieval"] == before


def test_where_the_sets_of_the_recipe_are_gone_others_may_be_named(folder: Path) -> None:
    recipe = folder / "recipe.toml"
    recipe.write_text(re.sub(r'data = \[\s*"[^"]*"', 'data = ["gone"', recipe.read_text()))
    done = run("verify", folder, "--device", "cpu")
    assert done.exit_code == 2
    assert "there is no retrieval set 'gone'" in done.stderr
    assert "--data or --sts name others" in done.stderr
    assert run("verify", folder, "--device", "cpu", "--data", "builtin").exit_code == 0
    shutil.copytree(RETRIEVAL, folder / "gone")  # a path in a recipe starts at its folder
    assert run("verify", folder, "--device", "cpu").exit_code == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_what_ran_nowhere_is_not_verified(folder: Path) -> None:
    done = run("verify", folder, "--device", "cuda")
    assert done.exit_code == 1
    assert "gguf ran on no device" in done.stderr
    assert not json.loads((folder / "manifest.json").read_text())["verified"]


def test_what_changes_while_it_is_verified_is_not_verified(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true, before = pipeline._verified, (folder / "manifest.json").read_bytes()

    def meanwhile(*arguments: Any) -> Any:
        found = true(*arguments)
        (folder / "recipe.toml").write_text((folder / "recipe.toml").read_text() + "\n")
        return found

    monkeypatch.setattr(pipeline, "_verified", meanwhile)
    done = run("verify", folder, "--device", "cpu")
    assert done.exit_code == 2
    assert "was changed while it was verified" in done.stderr
    assert (folder / "manifest.json").read_bytes() == before


def test_a_folder_that_is_being_built_is_left_alone(folder: Path) -> None:
    with locked(folder):
        done = run("verify", folder, "--device", "cpu")
    assert done.exit_code == 3
    assert "another run is at work on" in done.stderr


def test_a_folder_without_its_recipe_keeps_its_reports(folder: Path) -> None:
    (folder / "recipe.toml").unlink()
    before = folder_digests(folder)
    done = run("verify", folder, "--device", "cpu")
    assert done.exit_code == 2
    assert "recipe.toml" in done.stderr
    assert folder_digests(folder) == before


def test_a_manifest_of_other_makings_is_refused_before_anything_is_written(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["artifacts"][0]["tensors"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    before = folder_digests(folder)
    done = run("verify", folder, "--device", "cpu")
    assert done.exit_code == 2
    assert "build it again" in done.stderr
    assert folder_digests(folder) == before


def test_a_model_is_looked_for_where_the_command_runs(
    folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, tmp_path / "here" / "model")
    monkeypatch.chdir(tmp_path / "here")
    (gguf,) = (folder / "gguf").iterdir()
    done = run("verify", gguf, "--model", "model", "--device", "cpu")
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize("key", ["quant_method", "hidden_size", "hidden_act", "num_attention_heads"])
def test_a_stranger_s_torchao_folder_fails_alone(key: str, tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "theirs"))
    config = json.loads((model / "config.json").read_text())
    wrong = {"quant_method": {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "num_attention_heads": {key: 0}}
    (model / "config.json").write_text(json.dumps(config | wrong.get(key, {key: "none of it"})))
    done = run("verify", model, "--model", tiny_model, "--device", "cpu")
    assert done.exit_code == 1
    assert "torchao on cpu: failed" in done.stderr
