"""map and search: what is measured is what a file would hold, and budgets are kept to the byte."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.etree import ElementTree

import gguf
import numpy as np
import pytest
import tomli_w
from scipy import stats

from conftest import RECIPES, build, random_bert, run
from tierexport import pipeline
from tierexport.base.errors import InputError, PlanError
from tierexport.base.records import Source, Tensor
from tierexport.datasets.beir import read_beir
from tierexport.datasets.textfiles import BUILTIN
from tierexport.formats.gguf.convert import converted
from tierexport.formats.gguf.types import INPUT_BLOCK
from tierexport.model.description import describe
from tierexport.model.source import open_source
from tierexport.quantize.grids import GGUF_GRIDS
from tierexport.search.allocate import Budget, allocate, least_price
from tierexport.search.effects import Effects, Option
from tierexport.search.layer_map import layer_sensitivity
from tierexport.search.lossless import RetrievalJudge
from tierexport.search.stock import quantize_stock
from tierexport.search.study import Study, types_in
from tierexport.verify.intervals import Difference


@pytest.fixture(scope="module")
def study(tiny_model: Path) -> Study:
    return Study(str(tiny_model))


def random_types(study: Study, seed: int) -> dict[str, str]:
    generator = np.random.default_rng(seed)
    return {group.name: str(generator.choice(list(group.bytes))) for group in study.groups}


def by_tensor(study: Study, types: Mapping[str, str]) -> dict[str, str]:
    """Types by group as types by tensor."""
    return {tensor.name: types[group.name] for group in study.groups for tensor in group.tensors}


# --- the allocation


def random_effects(seed: int, alike: float) -> Effects:
    """Five options of each of six groups, whose moves are random; `alike`: how much of one direction all of them have."""
    generator = np.random.default_rng(seed)
    common = generator.standard_normal(400)
    names = [f"group {number}" for number in range(6)]
    moves, sizes = [], generator.integers(1000, 9000, (6, 5))
    for _ in range(30):
        own = generator.standard_normal(400) + alike * common * generator.uniform(-0.5, 1)
        moves.append(own * generator.uniform(1e-3, 1e-2) / np.linalg.norm(own))
    gram = np.array(moves) @ np.array(moves).T
    losses = gram.diagonal().reshape(6, 5) / 2
    options = {
        name: tuple(Option(f"T{each}", int(size), float(loss)) for each, (size, loss) in enumerate(zip(*both, strict=True)))
        for name, *both in zip(names, sizes, losses, strict=True)
    }
    return Effects(options, gram)


@pytest.mark.parametrize("alike", [0, 0.5, 1])
@pytest.mark.parametrize("seed", range(8))
def test_the_allocation_is_the_best_of_all(seed: int, alike: float) -> None:
    """Against every allocation that there is, its predicted loss summed up move by move."""
    effects = random_effects(seed, alike)
    options = effects.options
    smallest, largest = (sum(pick(option.bytes for option in found) for found in options.values()) for pick in (min, max))
    budget = int(np.random.default_rng(seed).integers(smallest, largest))
    every = [
        effects.predicted(dict(zip(options, choice, strict=True)))
        for choice in itertools.product(*options.values())
        if sum(option.bytes for option in choice) <= budget - 77
    ]
    bytes_taken = np.array([[option.bytes for _, option in effects.rows]], float)
    found = allocate(effects, Budget(bytes_taken, np.array([budget - 77])))
    assert found and effects.predicted(found) == pytest.approx(min(every), rel=0.01 if alike else 1e-9)
    assert sum(option.bytes for option in found.values()) + 77 <= budget
    assert allocate(effects, Budget(bytes_taken, np.array([smallest - 1]))) is None


@pytest.mark.parametrize("seed", range(8))
def test_the_allocation_keeps_two_budgets(seed: int) -> None:
    """Against every allocation within both, to which exchanges come near; and the least time within the bytes exactly."""
    effects = random_effects(seed, 0)
    generator = np.random.default_rng(seed)
    prices = np.array([[option.bytes for _, option in effects.rows], generator.uniform(0.1, 1, len(effects.rows))])
    number = {id(option): row for row, (_, option) in enumerate(effects.rows)}
    every = [[number[id(option)] for option in choice] for choice in itertools.product(*effects.options.values())]
    spent = np.array([prices[:, rows].sum(1) for rows in every])
    lost = np.array([effects.gram[np.ix_(rows, rows)].sum() / 2 for rows in every])
    most = np.quantile(spent[:, 0], 0.5)
    fastest = least_price(effects, Budget(prices, np.array([most, np.inf])), 1)
    assert fastest is not None and fastest == pytest.approx(spent[spent[:, 0] <= most, 1].min())
    best = np.where(spent[:, 0] <= most, lost, np.inf).argmin()
    limits = np.array([most, (fastest + spent[best, 1]) / 2])  # less time than the best takes of these bytes
    found = allocate(effects, Budget(prices, limits))
    assert found is not None
    taken = [number[id(option)] for option in found.values()]
    assert (prices[:, taken].sum(1) <= limits).all()
    assert lost[best] < effects.predicted(found)
    assert effects.predicted(found) == pytest.approx(lost[(spent <= limits).all(1)].min(), rel=0.1)
    assert allocate(effects, Budget(prices, np.array([most, 0.999 * fastest]))) is None


def test_a_search_keeps_to_a_time(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types of other speeds than this machine's, so that what is chosen is known; and this machine's, measured."""
    measured = study.times
    assert measured.keys() >= {"F32", "IQ4_NL"} and all(0.05 < each < 20 for each in measured.values())
    del study.times
    assert study.times == measured  # kept
    free = study.best(3_000_000, tmp_path / "free.toml")
    slow = max(set(free.types.values()) - {"Q8_0"}, key=list(free.types.values()).count)
    fake = {each.native: 1.0 for _, each in study.effects.rows} | {slow: 9.0}
    monkeypatch.setattr(study, "times", fake)
    fast = study.best(3_000_000, tmp_path / "fast.toml", 1.0)
    assert slow not in {fast.types[group.name] for group in study.groups if group.layer is not None}
    assert fast.time == pytest.approx(1) and fast.bytes <= 3_000_000 and fast.predicted > free.predicted
    assert "1.00 of the time of Q8_0" in (tmp_path / "fast.toml").read_text()
    with pytest.raises(InputError, match=r"takes 0.5 of the time of Q8_0 on this machine: the fastest takes 1.00"):
        study.best(3_000_000, tmp_path / "none.toml", 0.5)


def test_a_time_alone_is_no_budget(tiny_model: Path) -> None:
    assert run("search", tiny_model, "--lossless", "--max-time", "0.8").exit_code == 2
    assert "a time goes with a size" in run("quantize", tiny_model, "--max-time", "0.8").stderr


# --- what is measured is what a file would hold


@pytest.mark.parametrize("seed", range(3))
def test_a_recipe_gives_each_group_its_type_and_the_file_its_size(study: Study, seed: int, tmp_path: Path) -> None:
    types = random_types(study, seed)
    path = tmp_path / "found.toml"
    document = study.document(types, "found", "a trial")
    path.write_text(tomli_w.dumps(document | {"rounding": "nearest"}))
    built = build(path, tmp_path / "out")
    wanted = by_tensor(study, types)
    file = built.folder / built.artifact("gguf")["path"]
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    assert {name: stored[name].tensor_type.name for name in wanted} == wanted
    chosen = {group.name: types[group.name] for group in study.groups}
    size = study.size({group.name: Option(chosen[group.name], group.bytes[chosen[group.name]], 0) for group in study.groups})
    assert size - 128 < file.stat().st_size <= size  # the header has room for a longer name
    trial = study.trial
    with trial.rounded(wanted):
        for name in wanted:
            held = trial.rows(name).numpy()
            expected = gguf.quants.dequantize(stored[name].data, stored[name].tensor_type).reshape(held.shape)
            np.testing.assert_array_equal(held, expected)
    assert trial.sensitivity({}).max() < 1e-6  # everything is back


def random_choice(effects: Effects, seed: int) -> dict[str, Option]:
    generator = np.random.default_rng(seed)
    return {name: found[int(generator.integers(len(found)))] for name, found in effects.options.items()}


def test_predictions_are_what_a_build_loses(study: Study) -> None:
    """Random allocations as a build rounds them, on the same texts: it loses less, later layers making up for earlier ones."""
    choices = [random_choice(study.effects, seed) for seed in range(20, 32)]
    expected = [study.effects.predicted(choice) for choice in choices]
    built = [study.as_built(study.plan(types_in(choice), "trial")) for choice in choices]
    measured = [float(study.trial.loss(study.trial.encode(model)).mean()) for model in built]
    assert stats.spearmanr(expected, measured).statistic >= 0.9
    assert 0.4 < np.median(np.array(measured) / expected) < 1.1


def test_what_a_group_costs_alone_is_measured_with_error_feedback(study: Study) -> None:
    """Less than ggml's own rounding of it costs."""
    for group in study.groups:
        losses = {option.native: option.loss for option in study.effects.options[group.name]}
        fed_back = losses.keys() & GGUF_GRIDS.keys() - {"Q8_0"}
        assert len(fed_back) >= 2, group.name
        for native in fed_back:
            plain = float(study.trial.sensitivity({tensor.name: native for tensor in group.tensors}).mean())
            assert 0 < losses[native] < plain
        assert losses["F32"] == 0


def test_what_no_budget_would_take_is_not_measured(study: Study) -> None:
    """Of types of the same bytes, whose inputs llama.cpp rounds alike, only the best is left."""
    for found in study.effects.options.values():
        kinds = [(option.bytes, INPUT_BLOCK.get(option.native)) for option in found]
        assert len(set(kinds)) == len(kinds)
        assert {"Q8_0", "F32"} <= {option.native for option in found}


# --- the commands


def test_search_keeps_the_budget_and_uses_it(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("search", tiny_model, "--bits", "9", "--out", "nine.toml", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    (path,) = Path(found["out"]).glob("gguf/*.gguf")
    assert path.stat().st_size == found["bytes"]
    assert 0.98 * 9 <= found["stored_bits"] <= 9
    refused = run("search", tiny_model, "--bits", "9", "--out", RECIPES / "int8.toml")
    assert refused.exit_code == 2
    assert "was not written by search" in refused.stderr
    assert found["measured"] == 1 - found["results"][0]["cos_mean"]
    assert found["predicted"] == pytest.approx(found["measured"], rel=0.5)  # other texts
    assert (
        f"predicted loss (1 - cosine) {found['predicted']:.6f}" in tomllib.loads(Path("nine.toml").read_text())["description"]
    )

    monkeypatch.delattr("tierexport.search.measure._measure")  # what is in the cache is not measured again
    size = found["bytes"]
    again = json.loads(run("search", tiny_model, "--bytes", str(size), "--out", "again.toml", "--json").stdout)
    assert again["bytes"] <= size
    assert again["predicted"] >= found["predicted"]

    refused = run("search", tiny_model, "--bits", "1")
    assert refused.exit_code == 2
    assert "bytes are too few: with every tensor at its smallest type it takes" in refused.stderr
    smallest = int(refused.stderr.rpartition("takes ")[2].strip().replace(",", ""))
    assert run("search", tiny_model, "--bytes", str(smallest + 64), "--out", "least.toml").exit_code == 0
    for options in (
        [],
        ["--bits", "5", "--bytes", "7"],
        ["--bits", "5", "--frontier"],
        ["--lossless", "--frontier"],
        ["--bits", "0"],
        ["--bits", "nan"],
        ["--bits", "inf"],
        ["--bits", "9", "--out", str(tmp_path)],
        ["--bits", "9", "--out", "my recipe.toml"],
    ):
        assert run("search", tiny_model, *options).exit_code == 2


def test_a_killed_search_goes_on_where_it_was(minilm: Source, tmp_path: Path) -> None:
    """SIGKILL once some groups are measured: the next run takes them as they are, and ends as one left alone."""
    model = tmp_path / "one-layer"
    random_bert(model, minilm.path, initializer_range=0.2, num_hidden_layers=1)
    command = [sys.executable, "-m", "tierexport", "search", str(model), "--bits", "9", "--out", "nine.toml", "--json"]
    cache = tmp_path / "cache"
    environment = os.environ | {"TIEREXPORT_CACHE": str(cache)}

    def measured() -> dict[str, int]:
        """When each group was measured that is recorded; what a kill finds unrecorded is measured again."""
        records = cache.glob("models/*/.stages/effects-*.json")
        return {each.stem: (each.parents[1] / each.stem / "options.json").stat().st_mtime_ns for each in records}

    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        while len(measured()) < 3:
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    kept = measured()
    assert not (tmp_path / "nine.toml").exists()
    outcomes = []
    for where in (tmp_path, tmp_path / "alone"):
        where.mkdir(exist_ok=True)
        own = environment if where == tmp_path else os.environ | {"TIEREXPORT_CACHE": str(where / "cache")}
        done = subprocess.run(command, cwd=where, env=own, check=True, capture_output=True)
        outcomes.append((json.loads(done.stdout)["types"], (where / "nine.toml").read_bytes()))
    assert outcomes[0] == outcomes[1]
    assert len(kept) < len(measured())
    assert kept.items() <= measured().items()


def test_lossless_is_the_smallest_whose_interval_excludes_the_loss(tiny_model: Path, tmp_path: Path) -> None:
    """On all queries of both sets: what was found loses less than half of what the smallest may lose; 2 % less is too small."""
    sets = [BUILTIN / "retrieval", tmp_path / "half"]
    shutil.copytree(sets[0], sets[1])
    queries = (sets[1] / "queries.jsonl").read_text().splitlines(keepends=True)
    (sets[1] / "queries.jsonl").write_text("".join(queries[::2]))
    study = Study(str(tiny_model))
    judge = RetrievalJudge(study.trial.model, study.source, [read_beir(each) for each in sets])
    assert len(judge.reference) == len(queries) + len(queries[::2])

    def judged(types: Mapping[str, str]) -> Difference:
        return judge.difference(study.as_built(study.plan(types, "judged")))

    loss = -judged(types_in(study.within(study.smallest))).ci_low / 2
    assert loss > 0
    named = [part for each in sets for part in ("--data", each)]
    done = run("search", tiny_model, "--lossless", "--loss", str(loss), *named, "--out", tmp_path / "least.toml", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert study.smallest < found["bytes"] < study.largest
    assert [each["dataset"] for each in found["results"][0]["retrieval"]] == ["retrieval", "half"]
    assert judged(found["types"]).ci_low > -loss
    missed = judged(types_in(study.within(max(int(found["bytes"] * 0.98), study.smallest))))
    assert missed.ci_low <= -loss
    wanting = judge.queries_for(loss, missed)
    assert wanting is None or wanting > len(judge.reference)
    assert run("search", tiny_model, "--bits", "9", "--loss", "0.01").exit_code == 2


@pytest.mark.parametrize(("mean", "low", "queries"), [(-0.001, -0.009, 400), (-0.001, -0.003, 25), (-0.006, -0.009, None)])
def test_how_many_queries_would_show_it(mean: float, low: float, queries: int | None) -> None:
    """An interval's half shrinks with the root of the number of queries: here of 100, to exclude a loss of 0.005."""
    judge = RetrievalJudge.__new__(RetrievalJudge)
    judge.reference = np.zeros(100)
    assert judge.queries_for(0.005, Difference(mean, low, 0, 1)) == queries


def test_the_frontier_falls_and_stock_types_are_llama_cpps(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierexport.search.frontier.CURVE_POINTS", 4)
    done = run("search", tiny_model, "--frontier", "--picture", tmp_path / "frontier.svg", "--json")
    assert done.exit_code == 0, done.stderr
    points = json.loads(done.stdout)["points"]
    assert {each["name"] for each in points if each["kind"] == "llama.cpp"} == {"Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_NL"}
    assert {"three_tier", "int8"} <= {each["name"] for each in points if each["kind"] == "shipped"}
    assert all(each["relative_error"] > 0 for each in points)
    losses, errors = (stats.rankdata([each[name] for each in points]) for name in ("loss", "relative_error"))
    assert stats.pearsonr(losses, errors).statistic > 0.99  # of one model's vectors, they say the same
    curve = sorted((each["bytes"], each["predicted"]) for each in points if each["kind"] == "searched")
    assert len(curve) >= 4 + 10
    assert all(later <= sooner for (_, sooner), (_, later) in itertools.pairwise(curve))
    for kind in ("llama.cpp", "shipped"):
        for stock in (each for each in points if each["kind"] == kind):
            (beside,) = (each for each in points if each["kind"] == "searched" and each["name"] == stock["name"])
            assert beside["bytes"] <= stock["bytes"]
    built = tmp_path / "int8"
    done = run("build", RECIPES / "int8.toml", "--set", f"model={tiny_model}", "--set", 'formats=["gguf"]', "--out", built)
    assert done.exit_code == 0, done.stderr
    verified = json.loads((built / "verify.json").read_text())["results"][0]
    (int8,) = (each for each in points if (each["kind"], each["name"]) == ("shipped", "int8"))
    assert int8["loss"] == pytest.approx(1 - np.mean(verified["cosines"]), rel=1e-4)
    assert int8["relative_error"] == pytest.approx(verified["relative_error"], rel=1e-4)
    said = [each.text for each in ElementTree.parse(tmp_path / "frontier.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert {"Q4_K_M", "three_tier", "stored bits per parameter, whole file"} <= set(said)


@pytest.mark.parametrize("native", ["Q4_K_M", "IQ4_NL"])
def test_stock_files_are_llama_quantizes(minilm: Source, tool: Callable[[str], Path], tmp_path: Path, native: str) -> None:
    study = Study("all-MiniLM-L6-v2")
    quantize_stock(converted(minilm), native, study.imatrix, tmp_path / "ours.gguf")
    command = [tool("llama-quantize"), "--imatrix", study.imatrix.path, converted(minilm), tmp_path / "theirs.gguf", native]
    subprocess.run([str(each) for each in command], check=True, capture_output=True)
    ours, theirs = (gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors for name in ("ours", "theirs"))
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.name, mine.tensor_type) == (other.name, other.tensor_type)
        assert mine.data.tobytes() == other.data.tobytes()


def test_the_map_tells_layers_apart(tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_recipe.parent / "model"
    done = run("map", model, "--picture", tmp_path / "map.svg", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert [each["layer"] for each in found["readings"]] == [0, 1]
    assert [(each["layer"], each["bits"]) for each in found["damages"]] == [(0, 4), (0, 8), (1, 4), (1, 8)]
    assert all(each["loss"] > 0 for each in found["damages"])
    assert found["damages"][0]["loss"] > 20 * found["damages"][1]["loss"]
    for each in found["readings"]:
        assert 0 <= each["same_word"] + each["same_text"] <= 1
        assert 4 / 64 < each["largest_share"] < 1
        assert -1 <= each["anisotropy"] <= 1
    assert ElementTree.parse(tmp_path / "map.svg").getroot().tag.endswith("svg")

    (tmp_path / "models").mkdir()
    part = run("map", model, "--picture", tmp_path / "map.svg", "--toml").stdout
    (tmp_path / "models" / "mapped.toml").write_text(f'source = "{model}"\npooling = "mean"\n{part}')
    assert describe("mapped", tmp_path).map["loss_at_4_bits"] == [round(each["loss"], 6) for each in found["damages"][::2]]
    assert open_source("mapped", tmp_path).layers == 2
    assert run("map", model, "--picture", tmp_path / "map.doc").exit_code == 2


def test_the_map_of_a_layer_that_does_nothing(study: Study) -> None:
    """Its output is its input: it rewrites nothing, and the readings are those of the layer before."""
    from tierexport.model.encoder import open_model
    from tierexport.search.layers import read_layers

    model = open_model(study.source)
    layer = model.transformers_model.encoder.layer[1]
    monkey = layer.forward
    layer.forward = lambda hidden, *_, **__: hidden
    try:
        first, second = read_layers(model, study.texts[:40])
    finally:
        layer.forward = monkey
    assert second.rewrite == 0
    assert (first.same_word, first.anisotropy) == (second.same_word, second.anisotropy)


def test_the_plan_of_a_searched_recipe_is_the_pipelines(study: Study, tmp_path: Path) -> None:
    found = study.best(int(9 * study.parameters / 8), tmp_path / "nine.toml")
    (planned,) = pipeline.plan(found.recipe).formats
    types = by_tensor(study, found.types)
    assert {row.tensor.name: row.type for row in planned.rows if row.tensor.name in types} == types


@pytest.mark.parametrize("path", sorted((RECIPES / "searched").glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_that_were_found_still_keep_their_budget(path: Path) -> None:
    budget = int(tomllib.loads(path.read_text())["description"].split()[4].replace(",", ""))
    (planned,) = pipeline.plan(path).formats
    assert 0.95 * budget < planned.bytes < budget  # of the tensors alone; the header comes to that


def test_a_shape_that_no_type_takes_has_no_map(study: Study) -> None:
    with pytest.raises(PlanError, match="takes no type of 4 bits: their blocks don't divide its 312 columns"):
        layer_sensitivity(study.trial, 0, [Tensor("odd", "ffn_up", 0, (600, 312))], 4)
