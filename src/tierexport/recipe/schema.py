"""From TOML to Recipe: strict about keys, types and values; knows no model and no tensor."""

import difflib
import functools
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tierexport.base.errors import RecipeError
from tierexport.base.hub import REPOSITORY
from tierexport.base.paths import expanded
from tierexport.base.records import (
    FIDELITY_GATES,
    LEVELS,
    RETRIEVAL_GATES,
    SCALINGS,
    STORED,
    WIDEST,
    CalibrationSettings,
    Gate,
    Recipe,
    Rule,
    Tier,
    TorchaoSettings,
    VectorSettings,
    VerifySettings,
)
from tierexport.base.shipped import names_of, shipped
from tierexport.datasets.beir import split_off
from tierexport.model.description import FILE_NAME
from tierexport.model.roles import GROUPS, ROLES, expand

FORMATS = ("gguf", "torchao")
BITS = (2, 3, 4, 5, 6, 8, 16, 32)
LAYOUTS = ("portable", "packed")
ROUNDINGS = ("gptq", "distill", "nearest")
GROUP_SIZES = (32, 64, 128, 256)

T = TypeVar("T")
D = TypeVar("D")


@dataclass(frozen=True)
class Key:
    """A key of a recipe: what its value has to be, its default as docs/recipes.md shows it, and what it does."""

    expected: str
    default: str
    meaning: str


REQUIRED = "required"

KEYS: Mapping[str, Key] = {
    "name": Key("letters, digits, . _ - only, at most 100, for it names files", REQUIRED, "the recipe's name"),
    "description": Key("a text", "empty", "one line, for the model card"),
    "model": Key("a folder, ORG/NAME[@REVISION], pypi:PACKAGE or a name in models/", REQUIRED, "the fp32 model"),
    "base_model": Key(
        "ORG/NAME of a hub", "known for a model of a hub",
        "where the model is published, for one in a local folder: artifacts then name that and no path of this machine",
    ),
    "formats": Key(f"a list of {' and '.join(FORMATS)}", "both", "what is built"),
    "rounding": Key(", ".join(ROUNDINGS), ROUNDINGS[0], "how weights are rounded to their types ([below](#rounding))"),
    "tiers": Key("a table of tiers", REQUIRED, ""),
    "tiers.NAME.bits": Key(f"one of {', '.join(map(str, BITS))}", REQUIRED, "how precisely the tier's tensors are kept"),
    "tiers.NAME.gguf": Key("a native type of the format", "by bits", "the GGUF type, instead of the one that bits stand for"),
    "tiers.NAME.torchao": Key("a native type of the format", "by bits", "the same for torchao"),
    "tiers.NAME.fallback": Key("a table of native types by format", "none", ""),
    "tiers.NAME.fallback.gguf": Key("a native type of the format", "none: an error", "for shapes that can't take the first"),
    "tiers.NAME.fallback.torchao": Key("a native type of the format", "none: an error", "the same for torchao"),
    "rules": Key("a list of [[rules]]", REQUIRED, ""),
    "rules.N.tier": Key("the name of a tier", REQUIRED, "which tier the rule claims tensors for"),
    "rules.N.layers": Key(
        'ranges like "2-4", "7" or "30%-80%"', "any", "layers from 0, ends included, or shares of the depth; or a list of them"
    ),
    "rules.N.roles": Key("a list of roles", "any", "roles or groups of them ([below](#roles))"),
    "rules.N.names": Key("a list of name patterns with * and ?", "any", "patterns over GGUF or Hugging Face names"),
    "calibration": Key("a table", "", ""),
    "calibration.texts": Key(
        '"builtin", a .txt or .jsonl file, or a BEIR folder', "builtin",
        'what importance and rounding are measured on: a text per line, or "text" and perhaps "title" and "kind"',
    ),
    "calibration.count": Key("a number of texts, at least 1", str(CalibrationSettings.count), "how many, at even distances"),
    "calibration.imatrix": Key("an imatrix file in llama.cpp's GGUF format", "none", "importance, instead of measuring it"),
    "torchao": Key("a table", "", ""),
    "torchao.layout": Key(" or ".join(LAYOUTS), LAYOUTS[0], "how 4-bit values are stored (see the README)"),
    "torchao.group_size": Key(f"one of {', '.join(map(str, GROUP_SIZES))}", "32", "values per scale at 4 bits"),
    "vectors": Key("a table", "", ""),
    "vectors.level": Key(
        f"one of {', '.join(LEVELS)}", "fp32, or the model's own codec",
        "how precisely the vectors are stored that come out ([vectors.md](vectors.md)); bounds are fitted on calibration.texts",
    ),
    "vectors.codec": Key("a codec that tierexport vectors wrote", "none", "the codec to store them by, instead of a level"),
    "vectors.scaling": Key(f"one of {', '.join(SCALINGS)}", SCALINGS[0], "how bounds are chosen"),
    "vectors.per_vector": Key("true or false", "false", "ranges as multiples of each vector's own size"),
    "vectors.rotate": Key("true or false", "false", "a random rotation before everything else"),
    "vectors.widen": Key(f"a number from 1 to {WIDEST}", "1", "so many times as many dimensions, by rotated copies"),
    "vectors.asymmetric": Key("true or false", "false", "documents are quantized, queries not"),
    "verify": Key("a table", "", ""),
    "verify.data": Key(
        "BEIR folders, ORG/NAME[@REVISION][:SPLIT] on a hub, or builtin", "none", "BEIR or NanoBEIR sets to score retrieval on"
    ),
    "verify.sts": Key("a file of score, sentence, sentence with tabs between", "none", "sentence pairs to correlate with"),
    "verify.gates": Key('gates like "top10_retention >= 0.97"', "none", "limits to be kept ([below](#gates))"),
}  # fmt: skip
"""Every key there is: what is checked, and what docs/recipes.md says. NAME and N stand for any."""


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `KEY=VALUE` overrides, whose keys are dotted paths.

    A name without a suffix is looked up among the shipped recipes. Raises RecipeError with the
    key's path, its value, the rule, and the nearest name where one was misspelt.
    """
    document = load_document(path)
    for override in overrides:
        _override(document, override)
    settle_paths(document, [override.partition("=")[0] for override in overrides], Path())
    return parse_recipe(document, _found(path).parent)


PATH_KEYS = ("model", "calibration.texts", "calibration.imatrix", "vectors.codec", "verify.data", "verify.sts")
"""Keys whose value may be a path: in a recipe relative to it, in --set relative to the working directory."""


def settle_paths(document: dict[str, Any], keys: Iterable[str], folder: Path) -> None:
    """Make what is a path among the values of these keys absolute; relative ones start at `folder`."""
    for key in set(PATH_KEYS) & set(keys):
        *parents, last = key.split(".")
        place: Any = document
        for part in parents:
            place = place.get(part) if isinstance(place, dict) else None
        if isinstance(place, dict) and last in place:
            settle = functools.partial(_settled_set if key == "verify.data" else _settled, folder=folder)
            place[last] = [settle(each) for each in place[last]] if isinstance(place[last], list) else settle(place[last])


def _settled(value: Any, folder: Path) -> Any:
    if not isinstance(value, str) or value in ("", "builtin"):
        return value
    path = folder / expanded(value)
    return os.path.abspath(path) if path.exists() else value  # noqa: PTH100  # a link keeps its name


def _settled_set(value: Any, folder: Path) -> Any:
    """A retrieval set's folder may be followed by `:SPLIT`."""
    path, split = split_off(value, folder) if isinstance(value, str) else (value, None)
    return _settled(path, folder) if split is None else f"{_settled(path, folder)}:{split}"


def load_document(path: Path) -> dict[str, Any]:
    """The recipe as TOML reads it."""
    try:
        return tomllib.loads(_found(path).read_text("utf-8"))
    except OSError as error:
        listed = ", ".join(names_of("recipes"))
        raise RecipeError(f"can't read the recipe {path} ({error.strerror}); shipped with tierexport: {listed}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(f"{path} is not TOML: {error}") from None


def _found(path: Path) -> Path:
    return shipped("recipes") / f"{path}.toml" if not path.is_file() and str(path) in names_of("recipes") else path


def _override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override!r} is not KEY=VALUE, as in --set calibration.count=64")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        value = text
    *parents, last = key.split(".")
    place: Any = document
    for depth, part in enumerate(parents):
        place = _step(place, part, ".".join(parents[: depth + 1]))
    if isinstance(place, list):
        place[_index(place, last, key)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise RecipeError(f"--set {key}: there is nothing below {'.'.join(parents)!r}")


def _step(place: Any, part: str, path: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, part, path)]
    if isinstance(place, dict):
        return place.setdefault(part, {})
    raise RecipeError(f"--set {path}: there is nothing below it")


def _index(place: list[Any], part: str, path: str) -> int:
    if not part.isdecimal() or int(part) >= len(place):
        raise RecipeError(f"--set {path}: the list has entries 0 to {len(place) - 1}, not {part!r}")
    return int(part)


# --- strict reading


class _Table:
    """A TOML table that may hold the keys which KEYS has below `kind`, and no others."""

    def __init__(self, value: Any, kind: str = "", path: str | None = None) -> None:
        self.kind, self.path = kind, kind if path is None else path
        below = f"{kind}." if kind else ""
        keys = list(dict.fromkeys(key.removeprefix(below).partition(".")[0] for key in KEYS if key.startswith(below)))
        if not isinstance(value, dict):
            raise RecipeError(f"{self.path} has to be a table, not {value!r}")
        for key in value:
            if key not in keys:
                near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(keys)}"
                raise RecipeError(f"unknown key {self.at(key)!r}; {hint}")
        self.value = value

    def at(self, key: str) -> str:
        """The key's path in this recipe."""
        return f"{self.path}.{key}" if self.path else key

    def take(self, key: str, check: Callable[[Any], T]) -> T:
        """The value of `key`, which has to be there; `check` returns it or raises ValueError."""
        expected = KEYS[f"{self.kind}.{key}" if self.kind else key].expected
        if key not in self.value:
            raise RecipeError(f"{self.at(key)} is missing: it has to be {expected}")
        try:
            return check(self.value[key])
        except (ValueError, TypeError):
            raise RecipeError(f"{self.at(key)} = {self.value[key]!r} has to be {expected}") from None

    def get(self, key: str, check: Callable[[Any], T], default: D) -> T | D:
        """As `take`, with a default for a key that is not there."""
        return self.take(key, check) if key in self.value else default

    def table(self, key: str) -> "_Table":
        """The table below `key`, empty where there is none."""
        return _Table(self.value.get(key, {}), f"{self.kind}.{key}" if self.kind else key, self.at(key))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _name(value: Any) -> str:
    if not re.fullmatch(FILE_NAME, _text(value)):
        raise ValueError
    return str(value)


def _repository(value: Any) -> str:
    """The name of a hub's repository, as hubs allow it."""
    if not REPOSITORY.fullmatch(_text(value)):
        raise ValueError
    return str(value)


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _one_of(allowed: Sequence[T]) -> Callable[[Any], T]:
    def check(value: Any) -> T:
        if isinstance(value, bool) or value not in allowed:
            raise ValueError
        return allowed[allowed.index(value)]

    return check


def _texts(value: Any) -> tuple[str, ...]:
    return (_text(value),) if isinstance(value, str) else tuple(_text(each) for each in _list(value))


def _layers(value: Any) -> tuple[str, ...]:
    """Layer ranges; a lone layer may be a number, as in `layers = 7`."""
    return tuple(str(_layer(each)) for each in (_list(value) if isinstance(value, list) else [value]))


def _layer(value: Any) -> int | str:
    return value if isinstance(value, int) and not isinstance(value, bool) else _text(value)


def _formats(value: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_one_of(FORMATS)(each) for each in _texts(value)))


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError
    return value


# --- the recipe


def parse_recipe(document: Mapping[str, Any], folder: Path) -> Recipe:
    """Check a recipe document; `folder` is where its relative paths start. Raises RecipeError."""
    table = _Table(document)
    tiers = {name: _tier(name, value) for name, value in table.take("tiers", _mapping).items()}
    rules = table.take("rules", _list)
    recipe = Recipe(
        name=table.take("name", _name),
        description=table.get("description", _text, ""),
        model=table.take("model", _text),
        base_model=table.get("base_model", _repository, None),
        tiers=tiers,
        rules=tuple(_rule(value, f"rules.{number}", tiers) for number, value in enumerate(rules)),
        formats=table.get("formats", _formats, FORMATS),
        rounding=table.get("rounding", _one_of(ROUNDINGS), ROUNDINGS[0]),
        calibration=_calibration(table.table("calibration")),
        torchao=_torchao(table.table("torchao")),
        verify=_verify(table.table("verify")),
        vectors=_vectors(table.table("vectors")) if "vectors" in table.value else None,
        folder=folder,
        document=dict(document),
    )
    if unused := set(tiers) - {rule.tier for rule in recipe.rules}:
        raise RecipeError(f"tiers.{sorted(unused)[0]} is used by no rule: remove it, or add a rule for it")
    return recipe


def _tier(name: str, value: Any) -> Tier:
    table = _Table(value, "tiers.NAME", f"tiers.{name}")
    return Tier(name, table.take("bits", _one_of(BITS)), _native_types(table), _native_types(table.table("fallback")))


def _native_types(table: _Table) -> dict[str, str]:
    return {fmt: table.take(fmt, _text) for fmt in FORMATS if fmt in table.value}


def _rule(value: Any, path: str, tiers: Mapping[str, Tier]) -> Rule:
    table = _Table(value, "rules.N", path)
    rule = Rule(
        tier=table.take("tier", _text),
        layers=table.get("layers", _layers, ()),
        roles=table.get("roles", _texts, ()),
        names=table.get("names", _texts, ()),
    )
    if rule.tier not in tiers:
        raise RecipeError(f"{path}.tier = {rule.tier!r} is not among the tiers{_nearest(rule.tier, list(tiers))}")
    if not (rule.layers or rule.roles or rule.names):
        raise RecipeError(f"{path} claims nothing: give it layers, roles or names")
    for role in rule.roles:
        if not expand(role):
            raise RecipeError(f"{path}.roles: {role!r} is no role{_nearest(role, [*GROUPS, *ROLES])}")
    for layers in rule.layers:
        layer_range(layers, 1_000, path)
    return rule


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def layer_range(text: str, depth: int, path: str) -> range:
    """The layers that "2-4", "7" or "30%-80%" mean in a stack of `depth` layers.

    Numbers are inclusive and start at 0. Shares are cut at the nearest layer boundary, so ranges
    that meet at a share meet without overlap. Raises RecipeError for anything else.
    """
    first, _, last = text.partition("-")
    last = last or first
    try:
        if first.endswith("%") and last.endswith("%") and "-" in text:
            low, high = (float(each.removesuffix("%")) / 100 for each in (first, last))
            if not 0 <= low < high <= 1:
                raise ValueError
            return range(int(low * depth + 0.5), int(high * depth + 0.5))
        found = range(int(first), int(last) + 1)
        if not found or found.start < 0:
            raise ValueError
    except ValueError:
        raise RecipeError(
            f'{path}.layers: {text!r} has to be a layer ("7"), a range of layers ("2-4") or of the depth ("30%-80%")'
        ) from None
    return found


def _calibration(table: _Table) -> CalibrationSettings:
    return CalibrationSettings(
        texts=table.get("texts", _text, "builtin"),
        count=table.get("count", _count, CalibrationSettings.count),
        imatrix=table.get("imatrix", _text, None),
    )


def _torchao(table: _Table) -> TorchaoSettings:
    return TorchaoSettings(
        layout=table.get("layout", _one_of(LAYOUTS), LAYOUTS[0]), group_size=table.get("group_size", _one_of(GROUP_SIZES), 32)
    )


def _vectors(table: _Table) -> VectorSettings:
    if "codec" in table.value:
        if more := sorted(set(table.value) - {"codec"}):
            raise RecipeError(f"{table.at('codec')} names a codec, which has its own {more[0]}: remove {table.at(more[0])}")
        return VectorSettings(codec=table.take("codec", _text))
    return VectorSettings(
        level=table.take("level", _one_of(LEVELS)),
        scaling=table.get("scaling", _one_of(SCALINGS), SCALINGS[0]),
        widen=table.get("widen", _one_of(range(1, WIDEST + 1)), 1),
        per_vector=table.get("per_vector", _flag, False),
        rotate=table.get("rotate", _flag, False),
        asymmetric=table.get("asymmetric", _flag, False),
    )


def _verify(table: _Table) -> VerifySettings:
    return VerifySettings(
        data=table.get("data", _texts, ()),
        sts=table.get("sts", _text, None),
        gates=tuple(_gate(each) for each in table.get("gates", _texts, ())),
    )


def _gate(text: str) -> Gate:
    found = re.fullmatch(r"\s*(\w+)\s*(>=|<=)\s*(-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)\s*", text)
    if found is None:
        raise RecipeError(f'verify.gates: {text!r} has to be METRIC >= NUMBER or METRIC <= NUMBER, as "cos_mean >= 0.99"')
    known = (*FIDELITY_GATES, *RETRIEVAL_GATES)
    if found[1].removeprefix(STORED) not in known:
        raise RecipeError(f"verify.gates: {found[1]!r} is not measured{_nearest(found[1], known)}")
    return Gate(found[1], found[2], float(found[3]))
