"""Finding a recipe: the map of a model's layers, and the search for types under a budget of bytes."""

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tomli_w

from tierexport.base import archive
from tierexport.base.errors import InputError
from tierexport.base.files import write_whole
from tierexport.base.progress import stage
from tierexport.base.records import NO_IMATRIX, Imatrix, Text, bits_per_parameter
from tierexport.base.stages import Stages, stage_key
from tierexport.base.workers import HERE, Workers, check_keys
from tierexport.datasets.calibration import every_text, spread, texts_digest
from tierexport.formats import format_named, formats_of
from tierexport.formats.export import export, round_by_layers, tunable_of
from tierexport.formats.gguf.convert import converted
from tierexport.formats.job import Job
from tierexport.formats.protocol import Reader
from tierexport.model.batches import within
from tierexport.model.encoder import open_model
from tierexport.model.languages import languages_of
from tierexport.model.source import open_source
from tierexport.model.stages import source_stages
from tierexport.quantize.targets import NOTHING_ROUNDED
from tierexport.recipe.plan import Plan, make_plan
from tierexport.recipe.read import parse_recipe
from tierexport.recipe.schema import CalibrationSettings, Recipe
from tierexport.search import recipes
from tierexport.search.allocate import Budget, allocate, least_price
from tierexport.search.effects import Choice, Effects, Option
from tierexport.search.found import Found
from tierexport.search.groups import Group, groups_of
from tierexport.search.stock import quantize_stock
from tierexport.search.times import Times, time_of, times_of
from tierexport.search.trial import TrialModel

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from tierexport.search.measure import Calibrated

MARK = "Found for at most"
"""How the description of a searched recipe begins: what bears it may be replaced by another search."""

LONGEST_NAME = 100
"""Characters of a recipe's name at most, which stands in the header."""


TEXTS = 128
"""Built-in texts that losses are measured on."""

LONGEST_TEXT = 300
"""Characters of such a text: a long one takes more time and counts no more."""


class Study:
    """A model in a layout of a format, with all that trials on it need; what is slow is computed at first use."""

    def __init__(self, model: str, workers: Workers = HERE, fmt: str = "gguf", layout: int = 0) -> None:
        """`workers`: what runs trials. `layout`: which of the format's choices."""
        self.format, self.workers, self.layout = format_named(fmt), workers, layout
        self.choices = self.format.choices[layout]
        self.model = str(Path(model).resolve()) if Path(model).is_dir() else model
        with stage("Looking at the model"):
            self.source = open_source(self.model)
            self.tensors = self.format.tensors(self.source)
        self.groups = groups_of(self.tensors, self.choices)
        self.parameters = sum(tensor.parameters for tensor in self.tensors)

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to a worker, it is opened there."""
        return Study, (self.model, HERE, self.format.name, self.layout)

    def best(self, budget: int, out: Path, max_time: float | None = None) -> Found:
        """The best recipe for a budget of bytes, and of time, as `within` says, written to `out`.

        Raises InputError when nothing fits.
        """
        choice = self.within(budget, max_time)
        types = types_in(choice)
        size, expected = self.size(choice), self.effects.predicted(choice)
        took = None if max_time is None else sum(self.time(group, choice[group.name]) for group in self.groups)
        within_time = "" if took is None else f" and {took:.2f} of the time of {self.unit} where it was found"
        kind = self.format.title.removeprefix("the ")
        said = f"{MARK} {budget:,} bytes of {kind}{within_time}; predicted loss (1 - cosine) {expected:.6f}"
        write_whole(out, tomli_w.dumps(self.document(types, out.stem, said)))
        return Found(out, size, bits_per_parameter(size, self.parameters), expected, types, time=took)

    def within(self, budget: int, max_time: float | None = None) -> Choice:
        """The options of least predicted loss whose file takes at most `budget` bytes and, where that is named, `max_time` of
        the time that one of `unit` takes. Raises InputError.
        """
        unit = None if max_time is None else self.unit
        if budget < self.smallest:
            raise InputError(f"{budget:,} bytes are too few: with every tensor at its smallest type it takes {self.smallest:,}")
        prices, limits = [[float(option.bytes) for _, option in self.effects.rows]], [float(budget - self.fixed)]
        if max_time is not None:
            groups = {group.name: group for group in self.groups}
            prices.append([self.time(groups[name], option) for name, option in self.effects.rows])
            limits.append(max_time)
        spent = Budget(np.array(prices, float), np.array(limits))
        if (found := allocate(self.effects, spent)) is None:
            least = least_price(self.effects, spent, 1)
            raise InputError(
                f"no file of {budget:,} bytes takes {max_time:g} of the time of {unit} on this machine: "
                f"the fastest takes {least:.2f}"
            )
        return found

    def time(self, group: Group, option: Option) -> float:
        """What a group at an option adds to the time that a file takes, as a share of that of one of `unit`."""
        return time_of(group, option, self.groups, self.times)

    @property
    def unit(self) -> str:
        """The type whose file's time is 1. Raises InputError where types are not timed."""
        if self.choices.unit is None:
            raise InputError(f"a time is that of a GGUF in llama.cpp: types of {self.format.name} are not timed")
        return self.choices.unit

    @functools.cached_property
    def times(self) -> Times:
        """The time of every type that a group may get."""
        natives = sorted({option.native for _, option in self.effects.rows})
        texts = [text.text for text in self.texts]
        stages, code = source_stages(self.source), self.choices.code
        return times_of(self.groups, natives, self.unit, self._plainly_rounded, texts, stages, code)

    def _plainly_rounded(self, types: Mapping[str, str], path: Path) -> Reader:
        """A file with these types by group, rounded to the nearest, open."""
        made = self.plan(types, path.stem)
        self.format.write(Job(made.formats[0], made, self.imatrix), NOTHING_ROUNDED, path, lambda _: None)
        return self.format.open(path, "cpu")

    def size(self, choice: Choice) -> int:
        """Bytes of the file, its recipe's name being of the longest kind."""
        return self.fixed + sum(option.bytes for option in choice.values())

    @functools.cached_property
    def fixed(self) -> int:
        """Bytes that no choice changes: the header with a long name, and the tensors that stay unquantized."""
        return self.smallest - sum(group.bytes[group.smallest] for group in self.groups)

    @property
    def least(self) -> int:
        """Bytes of the smallest file that there can be, without an imatrix's name in its header; measures nothing."""
        return self._least_bytes(NO_IMATRIX)

    def _least_bytes(self, imatrix: Imatrix) -> int:
        made = self.plan(self._least, "n" * LONGEST_NAME)
        return self.choices.file_bytes(Job(made.formats[0], made, imatrix))

    @functools.cached_property
    def smallest(self) -> int:
        """Bytes with every group at its smallest type."""
        return self._least_bytes(self.imatrix)

    @property
    def largest(self) -> int:
        """Bytes with every group at its largest type."""
        return self.fixed + sum(max(option.bytes for option in options) for options in self.effects.options.values())

    def shipped(self, recipe: Recipe) -> Plan:
        """What a shipped recipe makes of this model in this format."""
        alone = replace(recipe, formats=(self.format.name,))
        return make_plan(alone, self.source, formats_of(alone))

    def as_built(self, made: Plan) -> "SentenceTransformer":
        """The model with the weights that a build of a plan would store."""
        job, model = Job(made.formats[0], made, self.imatrix), open_model(self.source)
        with tempfile.TemporaryDirectory() as scratch:
            round_by_layers(self.format, job, model, Stages(Path(scratch)), "")
        return model

    def built(self, made: Plan, folder: Path) -> Path:
        """The file or folder of a plan as a build writes it, in `folder`."""
        return export(self.format, Job(made.formats[0], made, self.imatrix), folder).path

    def stock(self, native: str, folder: Path) -> Path:
        """llama-quantize's file of a type in `folder`, importance given."""
        path = folder / f"{native}.gguf"
        quantize_stock(converted(self.source), native, self.imatrix, path)
        return path

    def stock_bytes(self, native: str) -> int:
        """The size of that file."""
        with tempfile.TemporaryDirectory() as scratch:
            return self.stock(native, Path(scratch)).stat().st_size

    def plan(self, types: Mapping[str, str], name: str) -> Plan:
        """The plan of a recipe with these types by group."""
        recipe = parse_recipe(self.document(types, name, "a trial"), Path())
        return make_plan(recipe, self.source, formats_of(recipe))

    def document(self, types: Mapping[str, str], name: str, description: str) -> dict[str, Any]:
        """A recipe with these types by group."""
        return recipes.document(name, description, self.model, types, self.groups, self.format.name, self.choices)

    @property
    def _least(self) -> dict[str, str]:
        """Every group at its smallest type."""
        return {group.name: group.smallest for group in self.groups}

    @functools.cached_property
    def imatrix(self) -> Imatrix:
        """The importance that a build of any recipe would measure."""
        made = self.plan(self._least, "importance")
        return self.format.calibrated(made.formats[0], made)

    @functools.cached_property
    def texts(self) -> list[Text]:
        """Built-in texts that losses are measured on, none of which rounding reads; the verifier judges on others."""
        every = every_text("builtin", languages_of(self.source))
        read = set(self._read)
        return spread([text for text in every if text not in read and len(text.text) <= LONGEST_TEXT] or every, TEXTS)

    @functools.cached_property
    def _read(self) -> list[Text]:
        """The texts that the rounding of a build reads."""
        every = every_text("builtin", languages_of(self.source))
        return within(open_model(self.source), every, CalibrationSettings().tokens)

    @functools.cached_property
    def trial(self) -> TrialModel:
        """The fp32 model over the texts, whose weights can be rounded."""
        return self.trial_on(self.texts)

    def trial_on(self, texts: Sequence[Text]) -> TrialModel:
        """The fp32 model over some texts."""
        imatrix, grouped = self.imatrix, [tensor for group in self.groups for tensor in group.tensors]
        with stage("Opening fp32"):
            return TrialModel(open_model(self.source), texts, grouped, imatrix, self.choices, self.choices.fp32(self.source))

    @functools.cached_property
    def effects(self) -> Effects:
        """What every group does at every type, from the cache or measured now."""
        from tierexport.search.measure import unmeasured

        waiting = unmeasured(self.groups, source_stages(self.source), self._effects_key)
        with stage("Measuring what each group costs") as running:
            if self.workers.count > 1 and waiting:
                parts = _by_layer(waiting)
                running.total(len(parts))
                check_keys(self.workers.map(self._kept, parts, running.step), [self._effects_key] * len(parts))
                return self._measured(self.groups, lambda _: None)
            running.total(len(self.groups))
            return self._measured(self.groups, running.step)

    def _kept(self, groups: Sequence[Group]) -> str:
        """What a worker does: the effects of groups are in the cache afterwards, for the key that is returned."""
        self._measured(groups, lambda _: None)
        return self._effects_key

    def _measured(self, groups: Sequence[Group], progress: Callable[[int], None]) -> Effects:
        from tierexport.search.measure import measure

        return measure(groups, lambda: self.trial, self._calibrated, source_stages(self.source), self._effects_key, progress)

    @functools.cached_property
    def _effects_key(self) -> str:
        """What the effects depend on."""
        read = [texts_digest(each, "builtin") for each in (self.texts, self._read)]
        code = ("tierexport.search.measure", *self.choices.code)
        return stage_key(code, read, self.choices.settings, self.imatrix.dataset, archive.tools())

    def _calibrated(self) -> "Calibrated":
        """What rounding takes of the model, as a build would."""
        from tierexport.search.measure import Calibrated

        made, model = self.plan(self._least, "rounding"), open_model(self.source)
        return Calibrated(model, self._read, frozenset(tunable_of(self.format, Job(made.formats[0], made), model)))


def _by_layer(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups of a layer together, which see the same inputs; each that is in none alone."""
    found: dict[int | str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.name if group.layer is None else group.layer, []).append(group)
    return list(found.values())


def types_in(choice: Choice) -> dict[str, str]:
    """The type that each group gets."""
    return {name: option.native for name, option in choice.items()}
