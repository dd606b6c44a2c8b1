"""Training a head for quantized vectors: it helps, it resumes to the same weights, and its result is a model."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from conftest import RECIPES, run
from tierexport.base.errors import DataError, VectorError
from tierexport.base.libraries import import_sentence_transformers
from tierexport.base.paths import cache_dir
from tierexport.datasets.beir import read_beir
from tierexport.datasets.calibration import calibration_texts, texts_in
from tierexport.datasets.textfiles import BUILTIN
from tierexport.metrics.similarity import normalized
from tierexport.model.encoder import open_model
from tierexport.model.source import open_source
from tierexport.recipe.choices import SCALINGS
from tierexport.training.goals import Goal, Pairs, Rows, Schedule, Trained
from tierexport.training.loop import train
from tierexport.training.losses import straight_through
from tierexport.training.models import Training, train_model, with_head
from tierexport.training.trainees import Head, Network, applied
from tierexport.vectors.codecs import TOP
from tierexport.vectors.encoder import open_encoder
from tierexport.vectors.scaling import TABLES, fit
from tierexport.vectors.storage import read_codec

SCREEN = BUILTIN / "screen" / "en.txt"

SHORT = Schedule(steps=60, every=20, batch=64, contrast=0.5)


def pairs(count: int = 600, dimensions: int = 32) -> Pairs:
    """Queries near their passages, in a space whose sign bits say little: it lies off the middle, and most of it is noise."""
    generator = np.random.default_rng(0)
    passages = generator.standard_normal((count, dimensions)) * np.geomspace(2, 0.05, dimensions) + 0.4
    queries = passages + generator.standard_normal(passages.shape) * 0.5
    asked, found = (normalized(each.astype(np.float32)).astype(np.float32) for each in (queries, passages))
    return Pairs(asked, found, np.arange(count))


def train_head(
    some: Pairs, goal: Goal, schedule: Schedule, state: Path, step: Callable[..., None] = lambda *_: None
) -> Trained:
    return train(Head(some), some, goal, schedule, state, step)


GAINS = {"trinary": 0.005, "binary": 0.02}


@pytest.mark.parametrize("level", TOP)
@pytest.mark.parametrize("quantized", [True, False])
def test_training_helps_and_never_hurts_on_what_it_is_judged_by(level: str, quantized: bool, tmp_path: Path) -> None:
    schedule = Schedule(steps=300, every=50, batch=128, rate=3e-3, contrast=1.0)
    some = pairs()
    trained = train_head(some, Goal(level, "rolling", quantized), schedule, tmp_path / "s")
    assert len(trained.scores) == 7
    held = some.passage % 10 == 0
    queries, passages = (applied(trained.weights["head"], each[held]) for each in (some.queries, some.passages))
    scores = (trained.codec.restored(queries) if quantized else queries) @ normalized(trained.codec.restored(passages)).T
    rank = (scores > np.diagonal(scores)[:, None]).sum(1)
    again = np.where(rank < 10, 1 / np.log2(2 + rank), 0).mean()
    assert again == pytest.approx(trained.scores[trained.step // 50], abs=0.02)  # its codec was fitted on more vectors
    assert trained.scores[trained.step // 50] == max(trained.scores)
    if level in GAINS:  # int8 and int4 find every passage untrained
        assert max(trained.scores) > trained.scores[0] + GAINS[level]


def test_vectors_that_are_all_the_same_don_t_win(tmp_path: Path) -> None:
    class Constant(Head):
        def embed(self, kind: str, rows: Rows) -> torch.Tensor:
            return super().embed(kind, rows) * 0 + self.weights["head"][:1]

    some = pairs(300)
    trained = train(Constant(some), some, Goal("binary"), SHORT, tmp_path / "s")
    assert max(trained.scores) < 0.3


@pytest.mark.parametrize(
    ("level", "scaling"), [each for each in itertools.product(TOP, SCALINGS) if each[0] != "int8" or each[1] not in TABLES]
)
def test_a_dimension_that_says_nothing(level: str, scaling: str, tmp_path: Path) -> None:
    some = pairs(200)
    for vectors in (some.queries, some.passages):
        vectors[:, 3] = 0
    trained = train_head(some, Goal(level, scaling), Schedule(steps=20, every=10, batch=32, contrast=0.5), tmp_path / "s")
    assert np.isfinite(trained.weights["head"]).all()
    assert np.isfinite(load_file(tmp_path / "s")["now.head"]).all()


@pytest.mark.parametrize(("level", "scaling"), [("int8", "rolling"), ("binary", "minmax"), ("int2", "clip"), ("int3", "lloyd")])
def test_training_sees_what_the_codec_stores(level: str, scaling: str) -> None:
    vectors = pairs().passages
    codec = fit(vectors, level, scaling)
    seen = straight_through(torch.from_numpy(vectors), codec).numpy()
    assert np.allclose(seen, normalized(codec.restored(vectors)), atol=1e-6)


def test_other_pairs_of_the_same_texts_are_another_run(tmp_path: Path) -> None:
    some = pairs(300)
    train_head(some, Goal("binary"), SHORT, tmp_path / "state")
    seen: list[int] = []
    other = Pairs(some.queries, some.passages, np.roll(some.passage, 1))
    train_head(other, Goal("binary"), SHORT, tmp_path / "state", lambda done, *_: seen.append(done))
    assert seen == [20, 40, 60]


def test_a_damaged_state_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"no safetensors")
    assert len(train_head(pairs(), Goal("binary"), SHORT, tmp_path / "state").scores) == 4


@pytest.mark.parametrize(("cut", "goal"), [(1, Goal("binary")), (2, Goal("binary")), (2, Goal("int2", "lloyd"))])
def test_a_run_that_was_killed_ends_in_the_same_weights(
    cut: int, goal: Goal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierexport.training.loop.REFITTED", 15)  # so that bounds are chosen between the checkpoints, too
    whole = train_head(pairs(), goal, SHORT, tmp_path / "whole")

    class KilledError(Exception):
        pass

    seen = []

    def kill(done: int, *_: float) -> None:
        seen.append(done)
        if len(seen) == cut:
            raise KilledError

    with pytest.raises(KilledError):
        train_head(pairs(), goal, SHORT, tmp_path / "cut", kill)
    resumed = train_head(pairs(), goal, SHORT, tmp_path / "cut", kill)
    assert seen[cut:] == [20 * step for step in range(cut + 1, 4)]
    assert np.array_equal(resumed.weights["head"], whole.weights["head"])
    assert resumed.scores == whole.scores
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("lora", [True, False])
def test_a_model_s_run_that_was_killed_ends_in_the_same_weights(lora: bool, tiny_model: Path, tmp_path: Path) -> None:
    passages = [text.text for text in calibration_texts("builtin", 120)]
    texts = {"query": [text[:40] for text in passages], "passage": passages}
    schedule = Schedule(steps=9, every=3, batch=16, rate=1e-3, contrast=0.5)

    def trained(state: str, step: Callable[..., None] = lambda *_: None) -> Trained:
        network = Network(open_model(open_source(str(tiny_model))), texts, {"query": "", "passage": ""}, lora, 0)
        return train(network, pairs(120), Goal("int4"), schedule, tmp_path / state, step)

    class KilledError(Exception):
        pass

    def kill(done: int, *_: float) -> None:
        if done == 6:
            raise KilledError

    whole = trained("whole")
    with pytest.raises(KilledError):
        trained("cut", kill)
    resumed = trained("cut")
    assert resumed.scores == whole.scores
    assert all(np.array_equal(resumed.weights[name], each) for name, each in whole.weights.items())
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert all("lora" in name for name in whole.weights) == lora


def test_another_run_s_state_is_not_taken_up(tmp_path: Path) -> None:
    train_head(pairs(), Goal("binary"), SHORT, tmp_path / "state")
    seen: list[int] = []
    train_head(pairs(), Goal("int4"), SHORT, tmp_path / "state", lambda done, *_: seen.append(done))
    assert seen == [20, 40, 60]


def test_the_seed_decides(tmp_path: Path) -> None:
    heads = []
    for seed, name in ((1, "a"), (1, "b"), (2, "c")):
        train_head(pairs(), Goal("binary"), Schedule(steps=20, every=20, batch=64, seed=seed), tmp_path / name)
        heads.append(load_file(tmp_path / name)["now.head"])
    assert np.array_equal(heads[0], heads[1])
    assert not np.array_equal(heads[0], heads[2])


def test_too_few_pairs(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match="100 at least"):
        train_head(pairs(50), Goal("binary"), SHORT, tmp_path / "state")


# --- the commands


@pytest.fixture(scope="module")
def some_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each calibration passage of the built-in ones with its own beginning as the query."""
    texts = [text.text for text in calibration_texts("builtin", 400)]
    lines = [json.dumps({"query": text[: len(text) // 2], "positive": text}) + "\n" for text in texts]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(lines), "utf-8")
    return path


def test_a_trained_model_is_a_model(tiny_model: Path, some_pairs: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "trained"
    shutil.copytree(tiny_model, model)
    options = ("--pairs", some_pairs, "--level", "binary", "--steps", "40", "--every", "20", "--out", out)
    done = run("vectors", "train", model, *options, "--json")
    assert done.exit_code == 0, done.stderr
    assert len(json.loads(done.stdout)["scores"]) == 3
    st = import_sentence_transformers()
    texts = ["a sentence", "another one of more words"]
    trained = st.SentenceTransformer(str(out), device="cpu").encode(texts)
    assert np.allclose(np.linalg.norm(trained, axis=1), 1, atol=1e-5)
    codec, codes = read_codec(out / "codec.safetensors")
    assert (codec.level, codec.bytes, codes) == ("binary", 8, None)

    encoded = run("vectors", "encode", out, SCREEN, "--codec", out / "codec.safetensors", "--out", tmp_path / "v")
    assert encoded.exit_code == 0, encoded.stderr
    again, packed = read_codec(tmp_path / "v")
    assert packed is not None
    assert packed.shape == (143, 8)
    sentences = (SCREEN).read_text("utf-8").splitlines()
    vectors = st.SentenceTransformer(str(out), device="cpu").encode(sentences)
    assert (again.encode(vectors) != packed).mean() < 0.01  # a value at zero may fall either way

    recipe = (RECIPES / "int8.toml").read_text().replace('"all-MiniLM-L6-v2"', f'"{out}"')
    (tmp_path / "recipe.toml").write_text(recipe)
    refused = run("build", tmp_path / "recipe.toml", "--out", tmp_path / "built")
    assert refused.exit_code == 2
    assert "Dense" in refused.stderr
    built = run("build", tmp_path / "recipe.toml", "--out", tmp_path / "built", "--set", 'formats=["torchao"]')
    assert built.exit_code == 0, built.stderr


def test_the_head_in_the_model_is_the_head_that_was_trained(tiny_model: Path, some_pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "trained"
    schedule = Schedule(steps=20, every=20, contrast=1.0)
    trained = train_model(str(tiny_model), some_pairs, "head", Goal("int8"), schedule, out)
    st = import_sentence_transformers()
    plain, ours = (st.SentenceTransformer(str(each), device="cpu").encode(["some words"]) for each in (tiny_model, out))
    assert np.allclose(applied(trained.weights["head"], plain), ours, atol=1e-5)


def test_runs_on_other_pairs_keep_out_of_each_other_s_way(
    tiny_model: Path, some_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIEREXPORT_CACHE", str(tmp_path / "cache"))
    other = tmp_path / "other.jsonl"
    other.write_text(some_pairs.read_text("utf-8").replace("a", "e"), "utf-8")
    states = {}
    for path in (some_pairs, other):
        training = Training(open_encoder(str(tiny_model)), path)
        before = set((cache_dir() / "training").glob("*"))
        training.head(Goal("int8"), Schedule(steps=3, every=1, seed=123_456))
        states[path] = set((cache_dir() / "training").glob("*")) - before
    assert [len(each) for each in states.values()] == [1, 1]


@pytest.mark.parametrize("what", ["head", "model"])
def test_a_trained_model_is_cut_and_licensed_as_before(what: str, tiny_model: Path, some_pairs: Path, tmp_path: Path) -> None:
    model = tmp_path / "source"
    shutil.copytree(tiny_model, model)
    (model / "sentence_bert_config.json").write_text('{"max_seq_length": 40, "do_lower_case": false}')
    (model / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n")
    out = tmp_path / "trained"
    train_model(str(model), some_pairs, what, Goal("int8"), Schedule(steps=1, every=1, batch=8), out)
    before, after = open_source(str(model)), open_source(str(out))
    assert before.max_tokens == after.max_tokens == 40
    assert (after.licence, after.languages) == ("mit", ("en",))
    assert json.loads((out / "training.json").read_text())["model"]["digest"] == before.digest


@pytest.mark.parametrize("lora", [True, False])
def test_what_is_saved_is_what_was_trained(lora: bool, tiny_model: Path, tmp_path: Path) -> None:
    texts = {"query": ["asked"], "passage": ["one text", "another text of a few more words", "a third"]}
    network = Network(open_model(open_source(str(tiny_model))), texts, {"query": "", "passage": "of: "}, lora, 0)
    before = network.embed("passage", np.arange(3)).detach().numpy()
    with torch.no_grad():
        for each in network.weights.values():
            each.add_(torch.randn(each.shape, generator=torch.Generator().manual_seed(0)) * 0.05)
    after = network.embed("passage", np.arange(3)).detach().numpy()
    network.merged().save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    saved = import_sentence_transformers().SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    found = saved.encode(texts["passage"], prompt="of: ", normalize_embeddings=False)
    assert np.abs(after - before).max() > 1e-3
    assert np.allclose(found, after, atol=1e-5)
    assert not any("lora" in name for name, _ in saved.named_parameters())


@pytest.mark.parametrize("what", ["lora", "model"])
def test_the_table_with_models_trained(what: str, tiny_model: Path, some_pairs: Path) -> None:
    options = ("--pairs", some_pairs, "--data", BUILTIN / "retrieval", "--steps", "2", "--every", "1", "--what", what)
    done = run("vectors", "eval", tiny_model, *options, "--json")
    assert done.exit_code == 0, done.stderr
    assert [row["best_step"] is None for row in json.loads(done.stdout)["rows"]] == [True] * 3 + [False] * 6


def test_a_head_may_be_wider(tiny_model: Path, some_pairs: Path, tmp_path: Path) -> None:
    options = ("--pairs", some_pairs, "--level", "binary", "--widen", "2", "--steps", "6", "--every", "3", "--contrast", "1")
    done = run("vectors", "train", tiny_model, *options, "--out", tmp_path / "wide", "--json")
    assert done.exit_code == 0, done.stderr
    st, sentences = import_sentence_transformers(), (SCREEN).read_text("utf-8").splitlines()
    models = (st.SentenceTransformer(str(each), device="cpu") for each in (tiny_model, tmp_path / "wide"))
    plain, wide = (each.encode(sentences) for each in models)
    assert wide.shape == (143, 128)
    assert np.abs(plain @ plain.T - wide @ wide.T).max() < 0.05  # six steps away from where no cosine changes
    codec, _ = read_codec(tmp_path / "wide" / "codec.safetensors")
    assert (codec.dimensions, codec.bytes) == (128, 16)
    stock = st.util.quantization.quantize_embeddings(wide, "ubinary")  # so that stock programs have the wider bits, too
    assert (stock == codec.encode(wide)).mean() > 0.99
    refused = run("vectors", "train", tiny_model, *options, "--what", "lora", "--out", tmp_path / "lora")
    assert refused.exit_code == 2
    assert "takes a head" in refused.stderr


def test_the_table_of_nine(tiny_model: Path, some_pairs: Path) -> None:
    options = ("--pairs", some_pairs, "--data", BUILTIN / "retrieval", "--steps", "20", "--every", "10")
    done = run("vectors", "eval", tiny_model, *options, "--json")
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["bytes"] for row in rows] == [256, 8, 8, 8, 8, 13, 32, 64, 64]
    assert [row["published"] for row in rows] == [60.10, 58.33, 59.08, 59.22, 60.81, 59.49, 61.73, 61.67, 61.29]
    assert rows[0]["delta"] == 0
    for row in rows:
        assert row["average"] == pytest.approx(rows[0]["average"] + row["delta"])
        assert row["ci_low"] <= row["delta"] <= row["ci_high"]
    shown = run("vectors", "eval", tiny_model, *options)
    assert "binary documents" in shown.stdout
    assert "60.10" in shown.stdout


@pytest.mark.parametrize("asked", [False, True])
def test_row_n_is_text_n(asked: bool, tiny_model: Path, tmp_path: Path) -> None:
    data = read_beir(BUILTIN / "retrieval", "test")
    texts = list(data.queries if asked else data.documents)
    run("vectors", "fit", tiny_model, "--level", "int8", "--out", tmp_path / "codec")
    done = run(
        "vectors", "encode", tiny_model, BUILTIN / "retrieval", "--codec", tmp_path / "codec", "--out", tmp_path / "v",
        *(["--queries"] if asked else []),
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    codec, codes = read_codec(tmp_path / "v")
    assert codes is not None
    vectors = import_sentence_transformers().SentenceTransformer(str(tiny_model), device="cpu").encode(texts)
    assert np.abs(codec.encode(vectors).astype(int) - codes.astype(int)).max() <= 1


def test_empty_lines_stay(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("one\n\nthree\n")
    run("vectors", "fit", tiny_model, "--level", "int8", "--out", tmp_path / "codec")
    done = run("vectors", "encode", tiny_model, tmp_path / "texts.txt", "--codec", tmp_path / "codec", "--out", tmp_path / "v")
    assert done.exit_code == 0, done.stderr
    codes = read_codec(tmp_path / "v")[1]
    assert codes is not None
    assert len(codes) == 3


def test_a_codec_of_another_model_is_refused(tiny_model: Path, some_pairs: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    half, other = tmp_path / "half", tmp_path / "other"
    for folder in (half, other):
        shutil.copytree(tiny_model, folder)
    BertModel.from_pretrained(tiny_model).half().save_pretrained(half)
    torch.manual_seed(1)
    BertModel(BertConfig.from_pretrained(tiny_model)).save_pretrained(other)
    run("vectors", "fit", tiny_model, "--level", "int8", "--out", tmp_path / "codec")
    options = ("--codec", tmp_path / "codec", "--out", tmp_path / "v")
    assert run("vectors", "encode", half, SCREEN, *options).exit_code == 0
    (tmp_path / "v").unlink()
    refused = run("vectors", "encode", other, SCREEN, *options)
    assert refused.exit_code == 2
    assert "the codec is for another model than other" in refused.stderr
    assert not (tmp_path / "v").exists()
    trained = ("--pairs", some_pairs, "--level", "binary", "--steps", "3", "--every", "3", "--out", tmp_path / "trained")
    assert run("vectors", "train", tiny_model, *trained).exit_code == 0
    refused = run("vectors", "encode", other, SCREEN, "--codec", tmp_path / "trained" / "codec.safetensors")
    assert "another model than other" in refused.stderr


def test_sets_of_one_name_are_refused(tiny_model: Path, some_pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(BUILTIN / "retrieval", tmp_path / "retrieval")
    two = ("--data", BUILTIN / "retrieval", "--data", tmp_path / "retrieval")
    refused = run("vectors", "eval", tiny_model, "--pairs", some_pairs, *two, "--steps", "1")
    assert refused.exit_code == 2
    assert "two retrieval sets are named" in refused.stderr
    wider = run("vectors", "eval", tiny_model, "--pairs", "no.jsonl", "--data", "none", "--widen", "2", "--what", "lora")
    assert "takes a head" in wider.stderr


def test_fit_and_what_is_wrong(tiny_model: Path, some_pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "codec.safetensors"
    done = run(
        "vectors", "fit", tiny_model, "--level", "trinary", "--scaling", "clip", "--rotate", "--count", "50", "--out", out
    )
    assert done.exit_code == 0, done.stderr
    codec, _ = read_codec(out)
    assert codec.rotation is not None
    assert codec.bytes == 13
    (tmp_path / "bad.jsonl").write_text('{"query": "a"}\n')
    bad = run("vectors", "train", tiny_model, "--pairs", tmp_path / "bad.jsonl", "--level", "int8", "--out", tmp_path / "out")
    assert bad.exit_code == 2
    assert "entry 1" in bad.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "training.json").write_text('{"rate": 1}')  # somebody else's
    refused = run("vectors", "train", tiny_model, "--pairs", some_pairs, "--level", "int8", "--out", tmp_path / "mine")
    assert refused.exit_code == 2
    assert "is not replaced" in refused.stderr
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"query": f"asked {n}", "positive": f"text {n % 9}"}) + "\n" for n in range(200)))
    refused = run("vectors", "train", tiny_model, "--pairs", few, "--level", "int8", "--out", tmp_path / "out")
    assert refused.exit_code == 2
    assert "9 passages are too few" in refused.stderr
    run("vectors", "fit", tiny_model, "--level", "int8", "--out", tmp_path / "mine" / "codec.safetensors")
    refused = run("vectors", "train", tiny_model, "--pairs", some_pairs, "--level", "int8", "--out", tmp_path / "mine")
    assert "is not replaced" in refused.stderr  # a codec alone does not make a folder ours
    assert (tmp_path / "mine" / "codec.safetensors").is_file()
    assert "--seed" in run("vectors", "eval", tiny_model, "--pairs", few, "--data", "x", "--seed", "-1").stderr
    other = run("vectors", "fit", tiny_model, "--level", "binary", "--asymmetric", "--out", tmp_path / "documents")
    assert other.exit_code == 0, other.stderr
    made = ("--codec", tmp_path / "documents", "--out", tmp_path / "v")
    assert run("vectors", "encode", tiny_model, SCREEN, *made).exit_code == 0
    asked = run("vectors", "encode", tiny_model, SCREEN, *made, "--queries")
    assert asked.exit_code == 2
    assert "leaves queries unquantized" in asked.stderr
    nowhere = run("vectors", "encode", tiny_model, "nowhere.txt", *made)
    assert nowhere.exit_code == 2
    assert "there is no file or folder nowhere.txt" in nowhere.stderr
    wrong = run("vectors", "encode", tiny_model, SCREEN, "--codec", tmp_path / "none", "--out", tmp_path / "v")
    assert wrong.exit_code == 2
    assert "is no codec" in wrong.stderr


def test_nothing_is_written_over_but_a_codec(tiny_model: Path, some_pairs: Path, tmp_path: Path) -> None:
    texts, codec = tmp_path / "texts.txt", tmp_path / "codec"
    texts.write_text("one\ntwo\n")
    fitting = ("vectors", "fit", tiny_model, "--level", "int8", "--out")
    encoding = ("vectors", "encode", tiny_model, texts, "--codec", codec, "--out")
    for _ in range(2):  # a codec may take a codec's place
        assert run(*fitting, codec).exit_code == 0
        assert run(*encoding, tmp_path / "vectors").exit_code == 0
    for command in (fitting, encoding):
        for out in (texts, tmp_path, "."):
            refused = run(*command, out)
            assert refused.exit_code == 2
            assert "is no codec, so it is not replaced" in refused.stderr
    assert texts.read_text() == "one\ntwo\n"
    out = tmp_path / "trained"
    schedule = ("--level", "int8", "--steps", "1", "--every", "1")
    assert run("vectors", "train", tiny_model, "--pairs", some_pairs, *schedule, "--out", out).exit_code == 0
    refused = run(*fitting, out / "codec.safetensors")
    assert refused.exit_code == 2
    assert "belongs to the model" in refused.stderr


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("texts.json", '["one", "two"]', "is neither text"),
        ("texts.csv", "text\none\n", "is neither text"),
        ("texts.jsonl", '{"text": "one", "kind": "query"}\n', "where each has to be a passage"),
        ("texts.jsonl", '{"text": "cut \\ud83d"}\n', "half of a character"),
        ("texts.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("texts.txt", "", "holds no text"),
    ],
)
def test_texts_that_would_be_encoded_wrongly(name: str, content: str, told: str, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    run("vectors", "fit", tiny_model, "--level", "int8", "--out", tmp_path / "codec")
    done = run("vectors", "encode", tiny_model, tmp_path / name, "--codec", tmp_path / "codec", "--out", tmp_path / "v")
    assert done.exit_code == 2
    assert told in done.stderr
    assert not (tmp_path / "v").exists()


def test_a_mark_of_byte_order_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("one\ntwo\n", "utf-8-sig")
    assert texts_in(str(tmp_path / "texts.txt"), "passage") == ["one", "two"]


def test_lines_are_texts_whatever_the_file_is_called(tmp_path: Path) -> None:
    for name in ("notes", "notes.md"):
        (tmp_path / name).write_text("one\ntwo\n")
        assert texts_in(str(tmp_path / name), "passage") == ["one", "two"]
    (tmp_path / "corpus.jsonl.bak").write_text('{"text": "one"}\n')
    assert texts_in(str(tmp_path / "corpus.jsonl.bak"), "passage") == ["one"]
    with pytest.raises(DataError, match="no file or folder"):
        texts_in(f"{tmp_path / 'notes'}:dev", "passage")


def test_texts_without_a_difference_make_no_codec(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("the same\n" * 9)
    done = run("vectors", "fit", tiny_model, "--level", "int4", "--texts", tmp_path / "texts.txt", "--out", tmp_path / "c")
    assert done.exit_code == 2
    assert "all 9 texts have the same vector" in done.stderr


def test_a_head_comes_behind_all_that_was_trained_on(tiny_model: Path, tmp_path: Path) -> None:
    """A model may normalize in the middle, and have a prompt by default."""
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize

    st = import_sentence_transformers()
    torch.manual_seed(0)
    modules = [*st.SentenceTransformer(str(tiny_model), device="cpu")][:2]
    prompts = {"query": "", "document": "find: "}
    modules = [*modules, Normalize(), Dense(64, 64, activation_function=torch.nn.Tanh()), Normalize()]
    model = st.SentenceTransformer(modules=modules, prompts=prompts, default_prompt_name="document", device="cpu")
    model.save_pretrained(str(tmp_path / "model"))
    headed = with_head(open_source(str(tmp_path / "model")), np.eye(64, dtype=np.float32))
    assert np.allclose(headed.encode(["some words"]), model.encode(["some words"]), atol=1e-5)
