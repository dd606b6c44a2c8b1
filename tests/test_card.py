"""The model card: its head is what hubs accept, its numbers are the verification's, and its snippets run."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from card_snippets import cosine, python, snippet
from conftest import RECIPES, Built, build
from loopback_card import card_errors
from loopback_repository import User
from loopback_writable import WritableHub, serving_writable
from tierexport import load
from tierexport.artifact.folder import read_verification
from tierexport.artifact.manifest import read_manifest
from tierexport.artifact.verdicts import GateResult
from tierexport.report.card import QUESTION, render_card
from tierexport.report.page import render_page

NAME, TOKEN = "alice/three_tier", "hf_alice"


@dataclass(frozen=True)
class Published:
    """A hub that has a release, the folder that it was made from, and the one that a stranger starts in."""

    hub: WritableHub
    artifact: Path
    stranger: Path

    def results(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((self.artifact / "verify.json").read_text())["results"]
        return found


@pytest.fixture(scope="module")
def published(scored: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    """three_tier with retrieval figures."""
    place = tmp_path_factory.mktemp("published")
    artifact = Path(shutil.copytree(scored, place / "three_tier"))
    with serving_writable(place / "cache") as hub:
        hub.tokens[TOKEN] = User("alice")
        command = [sys.executable, "-m", "tierexport", "publish", str(artifact), "--to", f"hf:{NAME}"]
        subprocess.run(command, env={**os.environ, **hub.environment(), "HF_TOKEN": TOKEN}, check=True, capture_output=True)
        (place / "stranger").mkdir()
        yield Published(hub, artifact, place / "stranger")


@pytest.fixture(scope="module")
def card(published: Published) -> str:
    return published.hub.head(NAME).files["README.md"].content.decode()


@pytest.fixture(scope="module")
def gguf_card(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The card of a folder that holds a GGUF alone, read where it lies."""
    out = tmp_path_factory.mktemp("gguf") / "out"
    build(RECIPES / "int8.toml", out, "--set", 'formats=["gguf"]', "--set", "rounding=nearest")
    return (out / "README.md").read_text(), out


# --- the head


def test_the_head_is_what_the_hub_accepts(card: str) -> None:
    assert card_errors(card) == []
    head: Any = ModelCard(card).data
    assert head.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert head.base_model_relation == "quantized"
    assert (head.license, head.language, head.library_name) == ("apache-2.0", ["en"], "sentence-transformers")
    assert {"gguf", "torchao", "sentence-transformers", "feature-extraction"} <= set(head.tags)


def test_card_and_page_lead_with_what_became_of_the_size(card: str, three_tier: Built) -> None:
    smallest = min(three_tier.manifest["artifacts"], key=lambda each: each["bytes"])
    factor = three_tier.manifest["model"]["fp32_bytes"] / smallest["bytes"]
    size = f"90.9 MB → {smallest['bytes'] / 1e6:.1f} MB ({factor:.1f} × smaller)"
    page = (three_tier.folder / "report.html").read_text("utf-8")
    assert f"**{size}, cosine 0.99" in card.split("##")[0]
    assert size in page.split("<h2>")[0]
    against = "Verified against fp32 all-MiniLM-L6-v2, sentence-transformers, cpu; without gates"
    assert against in page
    assert against in card.split("##")[0]
    assert 'class="verdict yes"' not in page  # green is for gates that held


def test_card_and_page_say_which_gates_held(three_tier: Built) -> None:
    manifest, found = read_manifest(three_tier.folder), read_verification(three_tier.folder)
    for passed, colour, told in ((True, "yes", "Verified against"), (False, "no", "Not verified against")):
        gates = (GateResult("cos_mean >= 0.99", "gguf", "cpu", 0.998, 0.99, passed),)
        judged = replace(found, gates=gates)
        for shown in (render_page(manifest, judged), render_card(manifest, judged, "name = 1")):
            assert told in shown
            assert "; gates: cos_mean" in shown
        assert f'class="verdict {colour}"' in render_page(manifest, judged)


def test_the_page_s_histograms_have_ticks_and_its_first_table_size_bits_and_fidelity(three_tier: Built) -> None:
    page = (three_tier.folder / "report.html").read_text("utf-8")
    chart = page.partition("<figure>")[2].partition("</figure>")[0]
    said = re.findall(r"<text[^>]*>([^<]*)</text>", chart)
    assert {"cosine to fp32", "texts", "1.000"} <= set(said)
    assert len([each for each in said if re.fullmatch(r"\d+", each)]) >= 2  # how many texts
    head = re.findall(r"<th>([^<]*)", page.partition("<table>")[2].partition("</tr>")[0])
    assert [each.strip() for each in head[:5]] == ["format", "size", "stored bits", "cosine", "top&#8209;10 kept"]


def test_its_numbers_are_the_verification_s_to_the_digit(card: str, published: Published) -> None:
    head = yaml.safe_load(card.split("---\n")[1])
    _, results = model_index_to_eval_results(head["model-index"])
    shown = {(each.dataset_type, each.metric_name): each.metric_value for each in results}
    ran = [each for each in published.results() if each["status"] == "ok"]
    assert len(ran) == 2
    expected = {}
    for each in ran:
        where = f"({each['format']}, {each['device']})"
        (judged,) = each["retrieval"]
        expected[("tierexport-screen", f"mean cosine to fp32 {where}")] = each["cos_mean"]
        expected[("tierexport-screen", f"share of the ten nearest neighbours kept {where}")] = each["top10_retention"]
        expected[("tierexport-screen", f"relative error of the vectors {where}")] = each["relative_error"]
        expected[("retrieval", f"NDCG@10 {where}")] = judged["ndcg_at_10"]
        expected[("retrieval", f"Δ NDCG@10 vs fp32 {where}")] = judged["delta"]
        expected[("retrieval", f"Recall@10 {where}")] = judged["recall_at_10"]
        for figure in (
            f"{each['cos_mean']:.5f}",
            f"{each['relative_error']:.5f} (",
            f"{judged['ndcg_at_10']:.4f}",
            f"{judged['ci_low']:+.4f} to",
        ):
            assert figure in card
    assert shown == expected


def test_it_says_what_was_not_run_and_holds_the_recipe(card: str, published: Published, three_tier: Built) -> None:
    for each in published.results():
        if each["status"] != "ok":
            assert f"| {each['format']} | {each['device']} | {each['status']}: {each['reason']} |" in card
    assert (three_tier.folder / "recipe.toml").read_text().strip() in card
    for artifact in three_tier.manifest["artifacts"]:
        assert f"{artifact['bytes']:,}" in card
        layer = [each["type"] for each in artifact["tensors"] if each["layer"] == 2 and each["role"] == "ffn_down"]
        assert f"| {layer[0]} |" in card


# --- the snippets, out of the card


def test_sentence_transformers_and_transformers(card: str, published: Published) -> None:
    expected = load(str(published.artifact / "torchao")).encode(QUESTION)
    for heading in ("sentence-transformers", "transformers"):
        found = python(snippet(card, heading, "python"), "vectors", published.stranger, published.hub.environment())
        assert cosine(found, expected) > 0.99999, heading


def test_langchain(card: str, published: Published) -> None:
    pytest.importorskip("langchain_huggingface")
    expected = load(str(published.artifact / "torchao")).encode(QUESTION)
    found = python(snippet(card, "LangChain", "python"), "vector", published.stranger, published.hub.environment())
    assert cosine(found, expected) > 0.99999


def test_llamaindex(card: str, published: Published, tmp_path: Path) -> None:
    pytest.importorskip("llama_index.embeddings.huggingface")
    environment = {**published.hub.environment(), "LLAMA_INDEX_CACHE_DIR": str(tmp_path)}
    found = python(snippet(card, "LlamaIndex", "python"), "vector", published.stranger, environment)
    assert cosine(found, load(str(published.artifact / "torchao")).encode(QUESTION)) > 0.99999


EVALUATED = """
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

firsts, seconds = ["A cat sleeps.", "Rain falls.", "He plays chess."], ["A kitten naps.", "It is raining.", "Bread is baked."]
score = EmbeddingSimilarityEvaluator(firsts, seconds, [1.0, 0.9, 0.0])(model)["spearman_cosine"]
"""


def test_sentence_transformers_own_evaluators_take_the_card_s_model(card: str, published: Published) -> None:
    code = snippet(card, "sentence-transformers", "python") + EVALUATED
    (score,) = python(code, "float(score)", published.stranger, published.hub.environment())
    assert score >= 0.5  # of three pairs, the one that is no paraphrase is last


@pytest.fixture(scope="module")
def fetched(card: str, published: Published) -> Path:
    """The repository as the card's own command fetches it."""
    command = re.findall(r"^hf download .*$", card, re.M)[0]
    environment = {**os.environ, **published.hub.environment(), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(command, shell=True, cwd=published.stranger, env=environment, check=True, capture_output=True)
    return published.stranger


def test_llama_cpp_python(card: str, fetched: Path, three_tier: Built) -> None:
    (gguf,) = (three_tier.folder / "gguf").iterdir()
    found = python(snippet(card, "llama-cpp-python", "python"), "vector", fetched)
    assert cosine(found, load(str(gguf)).encode(QUESTION)) > 0.9999
    assert abs(float(np.linalg.norm(found)) - 1) < 1e-4


def test_llama_embedding(card: str, fetched: Path, three_tier: Built, tool: Callable[[str], Path]) -> None:
    (gguf,) = (three_tier.folder / "gguf").iterdir()
    path = tool("llama-embedding").parent
    command = snippet(card, "llama.cpp", "sh").strip() + " --embd-output-format array"
    # On exit the tool drops what its log queue of 512 entries still holds (llama.cpp issue 22142). Each number and each
    # comma is an entry, so by the time the second vector is queued whole the first has been written.
    assert command.count(QUESTION) == 1
    command = command.replace(QUESTION, f"{QUESTION}\n{QUESTION}")
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}
    done = subprocess.run(command, shell=True, cwd=fetched, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    numbers = [float(each) for each in re.findall(r"-?\d+\.\d+", done.stdout)]
    expected = load(str(gguf)).encode(QUESTION)
    assert len(numbers) >= len(expected), done.stdout
    assert cosine(np.array(numbers[: len(expected)]), expected) > 0.9999


def test_langchain_on_a_gguf_alone(gguf_card: tuple[str, Path]) -> None:
    pytest.importorskip("langchain_core")
    card, folder = gguf_card
    (gguf,) = (folder / "gguf").iterdir()
    found = python(snippet(card, "LangChain", "python"), "vector", folder)
    assert cosine(found, load(str(gguf)).encode(QUESTION)) > 0.9999
    assert "### sentence-transformers" not in card
    assert card_errors(card) == []


def test_prompts_reach_every_snippet(three_tier: Built, tmp_path: Path) -> None:
    prompts = {"query": 'Ask "it":\nQuery: ', "passage": "passage: "}
    manifest = read_manifest(three_tier.folder)
    manifest = replace(manifest, model=replace(manifest.model, prompts=prompts))
    shown = render_card(manifest, read_verification(three_tier.folder), "name = 1")
    literal = json.dumps(f'Ask "it":\nQuery: {QUESTION}')
    assert f"model.embed({literal}, normalize=True)" in shown
    assert f"tokenizer([{literal}]," in shown
    assert "--embd-separator" in snippet(shown, "llama.cpp", "sh")
    assert 'encode_kwargs={"prompt_name": "document"}' in snippet(shown, "LangChain", "python")
    assert 'query_instruction="Ask \\"it\\":\\nQuery: "' in snippet(shown, "LlamaIndex", "python")
    assert 'text_instruction="passage: "' in snippet(shown, "LlamaIndex", "python")
    assert f"input={literal})" in snippet(shown, "llama.cpp", "python")
    assert 'prefix="Ask \\"it\\":\\nQuery: "' in snippet(shown, "Haystack", "python")
    for heading in ("LangChain", "LlamaIndex", "llama.cpp", "Haystack"):
        compile(snippet(shown, heading, "python"), "card", "exec")
