"""The verifier: nothing is trusted, each failure is told, gates decide the exit code."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sentence_transformers import SentenceTransformer

from conftest import RECIPES, Built, build, encoded, run
from tierexport.datasets import BUILTIN, read_beir, read_sts, screen
from tierexport.encode import VectorStore, length_sorted, open_model
from tierexport.errors import DataError
from tierexport.records import Encoded, Fidelity, Gate, Source, Verdict
from tierexport.verify import gates
from tierexport.verify.fidelity import measure, same_tokens, token_examples

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
    monkeypatch.setattr("tierexport.encode.BLOCK_TEXTS", 7)
    parts = encoded(model, texts, tmp_path)
    assert np.abs(whole.vectors - parts.vectors).max() < 1e-5
    assert (whole.tokens == parts.tokens).all()
    assert whole.ids(3) == parts.ids(3) == model.tokenizer(texts[3])["input_ids"]


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
    assert gguf["texts_per_second"] > 0
    page = (folder / "report.html").read_text()
    assert "http://" not in page
    assert "https://" not in page  # it asks for nothing over the network
    assert f"{judged['delta']:+.4f} ({judged['ci_low']:+.4f} to {judged['ci_high']:+.4f}" in page
    assert page.count('class="tier b4"') == 2 * 18
    card = (folder / "README.md").read_text()
    assert f"{judged['ndcg_at_10']:.4f}" in card
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


def test_a_harmed_gguf_is_an_error_and_no_traceback(three_tier: Built, tmp_path: Path) -> None:
    """Its header is overwritten in part."""
    folder = Path(shutil.copytree(three_tier.folder, tmp_path / "harmed"))
    path = folder / three_tier.artifact("gguf")["path"]
    raw = path.read_bytes()
    path.write_bytes(raw[:200] + b"\xff" * 64 + raw[264:])
    done = run("verify", folder, "--device", "cpu", "--json")
    assert done.exit_code in (1, 2)
    assert "Traceback" not in done.stderr


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
    assert "the gate cos_mean >= 1.5 failed: it is 0." in said
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["verified"] is False  # kept, and marked
    assert "**Not verified:**" in (out / "README.md").read_text()
    code, said = build_with("ndcg_delta_ci_low >= -0.005", tiny_recipe, out)
    assert code == 1
    assert "it was not measured" in said


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("top10_retained >= 0.9", "'top10_retained' is not measured; did you mean 'top10_retention'?"),
        ("cos_mean > 0.9", "has to be METRIC >= NUMBER"),
        ("cos_mean >= high", "has to be METRIC >= NUMBER"),
    ],
)
def test_gates_are_read_strictly(gate: str, message: str) -> None:
    done = run("plan", RECIPES / "f16.toml", "--set", f'verify.gates=["{gate}"]')
    assert done.exit_code == 2
    assert message in done.stderr


def test_gates_compare_as_they_say() -> None:
    verdict = Verdict("gguf", "cpu", "ok", tokens_share=1.0, fidelity=Fidelity(9, 0.9, 0.8, 0.7, 0.6, 0.5))
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


def test_rank_correlation_is_spearmans_over_all_pairs(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    vectors = generator.normal(size=(20, 8)).astype(np.float32)
    moved = vectors + generator.normal(size=vectors.shape).astype(np.float32) * 0.3
    found = measure(store(tmp_path / "a", [[1]] * 20, vectors), store(tmp_path / "b", [[1]] * 20, moved))
    pairs = [(i, j) for i in range(20) for j in range(i + 1, 20)]
    cosine = [[float(x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j])) for i, j in pairs] for x in (vectors, moved)]
    assert found.rank_correlation == pytest.approx(stats.spearmanr(*cosine).statistic, abs=1e-4)


def test_sts_files_are_checked(tmp_path: Path) -> None:
    (tmp_path / "sts.tsv").write_text("1.0\ta\tb\nx\tc\td\n")
    with pytest.raises(DataError, match="line 2 is not SCORE"):
        read_sts(tmp_path / "sts.tsv")
    (tmp_path / "sts.tsv").write_text("score\tone\tother\n")
    with pytest.raises(DataError, match="holds 0 sentence pairs"):
        read_sts(tmp_path / "sts.tsv")


def test_a_recipe_names_its_own_retrieval_sets(tiny_recipe: Path) -> None:
    shutil.copytree(RETRIEVAL, tiny_recipe.parent / "set")
    built = build(tiny_recipe, tiny_recipe.parent / "out", "--set", "verify.data=set", "--set", 'formats=["gguf"]')
    assert built.results["gguf"]["retrieval"][0]["dataset"] == "set"
    assert read_beir(tiny_recipe.parent / "set").name == "set"
