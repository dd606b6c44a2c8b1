"""Finding a recipe: the map of a model's layers, and the search for types under a budget of bytes."""

import functools
import itertools
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import tomli_w

from tierexport import archive, pipeline
from tierexport.beir import read_retrieval_set
from tierexport.calibrate import texts_digest
from tierexport.datasets import calibration_texts, screen
from tierexport.encode import open_model
from tierexport.errors import RecipeError
from tierexport.formats import formats_of
from tierexport.formats.gguf import GgufFormat, converted, file_bytes, read_tensors, source_stages, targets
from tierexport.plan import make_plan
from tierexport.progress import stage
from tierexport.recipe import parse_recipe, read_recipe
from tierexport.records import Imatrix, Plan, Text
from tierexport.report.pictures import frontier_picture, kind_of, map_picture
from tierexport.roles import KEPT_ROLE
from tierexport.rounding.layerwise import round_layers
from tierexport.search import recipes
from tierexport.search.allocate import allocate, predicted
from tierexport.search.bench import Bench
from tierexport.search.found import Found, Frontier, Point
from tierexport.search.layer_map import CAUSAL_BITS, ModelMap, damage_of, draw_map
from tierexport.search.layers import read_layers
from tierexport.search.lossless import RetrievalJudge
from tierexport.search.sensitivity import Option, Options, group_bytes, groups_of, measure, types_of
from tierexport.search.stock import STOCK, quantize_stock
from tierexport.shipped import shipped
from tierexport.source import FILE_NAME, open_source
from tierexport.workdir import Stages, stage_key, write_whole

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CURVE_POINTS = 12
"""Sizes searched along the curve, beside those of the points with names."""

LONGEST_NAME = 100
"""Characters of a recipe's name at most, which stands in the header."""

MARK = "Found for at most"
"""How the description of a searched recipe begins: what bears it may be replaced by another search."""

TOLERANCE = 0.01
"""Share of the size at which the search for the smallest ends."""

TEXTS = 128
"""Built-in calibration texts that damage is measured on; the verifier judges on others."""


def map_model(model: str, picture: Path) -> ModelMap:
    """Map a model over the built-in texts, drawn to `picture`. Raises InputError or MachineError."""
    kind = kind_of(picture)
    study = Study(model)
    with stage("Reading the layers"):
        readings = read_layers(open_model(study.source), study.texts)
    bench = study.bench
    with stage("Rounding one layer at a time") as running:
        running.total(len(readings) * len(CAUSAL_BITS))
        damages = []
        for layer, bits in itertools.product(range(len(readings)), CAUSAL_BITS):
            tensors = [tensor for group in study.groups if group.layer == layer for tensor in group.tensors]
            damages.append(damage_of(bench, layer, tensors, bits))
            running.step()
    found = draw_map(study.source.name, len(study.texts), readings, damages)
    write_whole(picture, map_picture(found, kind))
    return found


def search(model: str, bits: float | None, size: int | None, out: Path | None) -> tuple[Found, pipeline.Build]:
    """The recipe of least damage whose GGUF takes at most `size` bytes, or `bits` per parameter.

    It is written to `out`, or to MODEL-BUDGET.toml, then built and verified. Raises InputError for a
    budget that nothing fits, with the smallest that something does.
    """
    if bits is not None and not 0 < bits <= 32:
        raise RecipeError(f"a budget of {bits} bits per parameter can't be met: name one between 2 and 32")
    study = Study(model)
    out = out or Path(f"{study.source.name}-{f'{size}bytes' if size else f'{bits:g}bits'}.toml")
    _check_replaceable(out)
    return _built(study.best(size or int((bits or 0) * study.parameters / 8), out))


def search_lossless(model: str, data: str | None, out: Path | None) -> tuple[Found, pipeline.Build]:
    """The smallest recipe whose NDCG@10 on a retrieval set the interval can't tell from fp32's.

    `data` names the set; without it, it is the built-in one. Sizes are halved until 1 % is left, which
    supposes that a larger budget is never worse. Raises InputError.
    """
    study = Study(model)
    out = out or Path(f"{study.source.name}-lossless.toml")
    _check_replaceable(out)
    name = data or "builtin"
    judge = RetrievalJudge(study.bench, study.source, read_retrieval_set(name, Path()))
    low, high = study.smallest, study.largest
    with stage("Halving the budget") as running:
        while high - low > high * TOLERANCE:
            middle = (low + high) // 2
            running.say(f"Trying {8 * middle / study.parameters:.2f} bits")
            types = {group: option.native for group, option in study.within(middle).items()}
            low, high = (low, middle) if judge.indistinct(study.by_tensor(types)) else (middle, high)
    return _built(study.best(high, out), f"verify.data={json.dumps([name])}")


def _built(found: Found, *overrides: str) -> tuple[Found, pipeline.Build]:
    """Build what was found; the size is that of the file."""
    built = pipeline.build(found.recipe, overrides=overrides)
    (artifact,) = built.manifest["artifacts"]
    return replace(found, bytes=artifact["bytes"], stored_bits=artifact["stored_bits"]), built


def _check_replaceable(out: Path) -> None:
    if not re.fullmatch(FILE_NAME, out.stem):
        raise RecipeError(f"{out} names a recipe {out.stem!r}, and a name has letters, digits, . _ - only: name another --out")
    if out.exists() and (not out.is_file() or MARK not in out.read_text("utf-8", "replace")):
        raise RecipeError(f"{out} exists and was not written by search, so it is not replaced: name another --out")


class Study:
    """A model with all that trials on it need; what is slow is done when it is first asked for."""

    def __init__(self, model: str) -> None:
        self.model = str(Path(model).resolve()) if Path(model).is_dir() else model
        with stage("Looking at the model"):
            self.source = open_source(self.model)
            self.tensors = GgufFormat().tensors(self.source)
        self.groups = groups_of(self.tensors)
        self.parameters = sum(tensor.parameters for tensor in self.tensors)
        self.texts = calibration_texts("builtin", TEXTS, Path())

    def best(self, budget: int, out: Path) -> Found:
        """The best recipe for a budget of bytes, written to `out`. Raises InputError when nothing fits."""
        choice = self.within(budget)
        types = {name: option.native for name, option in choice.items()}
        with stage("Trying what was found"):
            measured = float(self.bench.damage(self.by_tensor(types)).mean())
        size, expected = self.size(choice), predicted(choice)
        said = f"{MARK} {budget:,} bytes of GGUF; predicted loss (1 - cosine) {expected:.6f}"
        write_whole(out, tomli_w.dumps(recipes.document(out.stem, said, self.model, types, self.groups)))
        return Found(out, size, 8 * size / self.parameters, expected, measured, types)

    def within(self, budget: int) -> dict[str, Option]:
        """The options of least damage whose file takes at most `budget` bytes. Raises InputError."""
        return allocate(self.options, budget, self.fixed)

    def size(self, choice: Mapping[str, Option]) -> int:
        """Bytes of the GGUF, its recipe's name being of the longest kind."""
        return self.fixed + sum(option.bytes for option in choice.values())

    @functools.cached_property
    def fixed(self) -> int:
        """Bytes that no choice changes: the header with a long name, and the tensors that are kept."""
        types = {group.name: types_of(group)[0] for group in self.groups}
        made = self.plan(types, "n" * LONGEST_NAME)
        whole = file_bytes(made.formats[0], made.recipe, self.source, self.imatrix)
        return whole - sum(group_bytes(group, types[group.name]) for group in self.groups)

    @property
    def smallest(self) -> int:
        """Bytes with every group at its smallest type."""
        return self.fixed + sum(min(option.bytes for option in options) for options in self.options.values())

    @property
    def largest(self) -> int:
        """Bytes with every group at its largest type."""
        return self.fixed + sum(max(option.bytes for option in options) for options in self.options.values())

    def shipped(self, path: Path) -> Plan:
        """What a shipped recipe makes of this model as a GGUF."""
        recipe = replace(read_recipe(path), formats=("gguf",))
        return make_plan(recipe, self.source, formats_of(recipe))

    def as_built(self, made: Plan) -> "tuple[int, SentenceTransformer]":
        """The bytes of a plan's GGUF, and the model with the weights that a build would store in it."""
        (planned,), recipe = made.formats, made.recipe
        model = open_model(self.source)
        texts = calibration_texts(recipe.calibration.texts, recipe.calibration.count, recipe.folder)
        with tempfile.TemporaryDirectory() as scratch:
            round_layers(model, texts, targets(planned, self.source, self.imatrix), Stages(Path(scratch)), "")
        return file_bytes(planned, recipe, self.source, self.imatrix), model

    def stock(self, native: str) -> tuple[int, dict[str, str]]:
        """The bytes and the types by tensor of llama-quantize's file of a type, importance given."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "stock.gguf"
            quantize_stock(converted(self.source), native, self.imatrix, path)
            types = {tensor.name: kind for tensor, kind, _ in read_tensors(path) if tensor.role != KEPT_ROLE}
            return path.stat().st_size, types

    def plan(self, types: Mapping[str, str], name: str) -> Plan:
        """The plan of a recipe with these types by group."""
        recipe = parse_recipe(recipes.document(name, "a trial", self.model, types, self.groups), Path())
        return make_plan(recipe, self.source, formats_of(recipe))

    def by_tensor(self, types: Mapping[str, str]) -> dict[str, str]:
        """Types by group as types by tensor."""
        return {tensor.name: types[group.name] for group in self.groups for tensor in group.tensors}

    @functools.cached_property
    def imatrix(self) -> Imatrix:
        """The importance that a build of any recipe would measure."""
        return pipeline.importance(self.plan({group.name: types_of(group)[0] for group in self.groups}, "importance"))

    @functools.cached_property
    def bench(self) -> Bench:
        """The fp32 model over the texts."""
        imatrix = self.imatrix
        with stage("Opening fp32"):
            return Bench(open_model(self.source), self.texts, self.tensors, imatrix)

    @functools.cached_property
    def options(self) -> Options:
        """Bytes and damage of every group at every type, from the cache or measured now."""
        key = stage_key(texts_digest(self.texts, "builtin"), self.imatrix.dataset, archive.tools())
        with stage("Measuring what each group costs") as running:
            running.total(sum(len(types_of(group)) for group in self.groups))
            return measure(self.groups, lambda: self.bench, source_stages(self.source), key, running.step)


def frontier(model: str, picture: Path) -> Frontier:
    """Bytes against loss on unseen sentences: searched sizes, shipped recipes, llama.cpp's stock types.

    A searched point that bears a name takes at most the size of what else is so named. All have the
    same importance and are judged on the same sentences; ours are rounded as a build would, layer by
    layer. Raises InputError or MachineError.
    """
    kind = kind_of(picture)
    study = Study(model)
    judge = Bench(open_model(study.source), [Text(text, "passage") for text in screen()], study.tensors, study.imatrix)

    def point(kind: str, name: str, size: int, loss: npt.NDArray[np.float64], expected: float | None = None) -> Point:
        return Point(kind, name, size, 8 * size / study.parameters, float(loss.mean()), expected)

    def built(kind: str, name: str, made: Plan, expected: float | None = None) -> Point:
        size, rounded = study.as_built(made)
        return point(kind, name, size, judge.loss(judge.encode(rounded)), expected)

    stock = {native: study.stock(native) for native in STOCK}
    named = [point("llama.cpp", native, size, judge.damage(types)) for native, (size, types) in stock.items()]
    named += [built("shipped", path.stem, study.shipped(path)) for path in sorted(shipped("recipes").glob("*.toml"))]
    largest = max(each.bytes for each in named)
    budgets = [("", int(size)) for size in np.geomspace(study.smallest, largest, CURVE_POINTS)]
    budgets += [(each.name, each.bytes) for each in named if each.bytes >= study.smallest]
    curve = []
    with stage("Building along the curve") as running:
        running.total(len(budgets))
        for name, budget in budgets:
            choice = study.within(budget)
            made = study.plan({group: option.native for group, option in choice.items()}, "searched")
            curve.append(built("searched", name, made, predicted(choice)))
            running.step()
    found = Frontier(study.source.name, (*named, *curve))
    write_whole(picture, frontier_picture(found, kind))
    return found
