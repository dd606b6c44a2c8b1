"""What a recipe declares: the values, and for each key what it has to be. Knows no model and no tensor.

pydantic checks a document against these types (`recipe.read`), and docs/recipes.md is written from them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf, Strict, ValidationError

from tierexport.base.hub import REPOSITORY
from tierexport.base.registry import FORMATS
from tierexport.base.validation import (
    CHECKED,
    LISTED,
    Count,
    Flag,
    Key,
    Table,
    Text,
    keys_of,
    matching,
    nearest,
    not_a_key,
    one_of,
)
from tierexport.model.description import FILE_NAME
from tierexport.model.roles import GROUPS, ROLES, expand
from tierexport.recipe.choices import BITS, GROUP_SIZES, LAYOUTS, LEVELS, ROUNDINGS, SCALINGS, WIDEST
from tierexport.recipe.gates import Gate, parse_gate
from tierexport.recipe.ranges import layer_range

ANY_DEPTH = 1_000
"""Layers of a stack on which ranges are tried; `plan` says whether the model has as many."""


def _words(allowed: tuple[Any, ...]) -> str:
    return ", ".join(map(str, allowed))


# --- checks that say more than what was expected


def _roles(roles: tuple[str, ...]) -> tuple[str, ...]:
    for role in roles:
        if not expand(role):
            raise ValueError(f"{role!r} is no role{nearest(role, [*GROUPS, *ROLES])}")
    return roles


def _layers(ranges: tuple[str, ...]) -> tuple[str, ...]:
    for text in ranges:
        layer_range(text, ANY_DEPTH)
    return ranges


def _layer_text(value: Any) -> Any:
    """A lone layer may be a number, as in `layers = 7`."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _gates(value: Any) -> Any:
    """Gates from their texts; what is none stays as it is, and is refused as no gate."""
    texts = value if isinstance(value, list) else [value]
    return tuple(map(parse_gate, texts)) if texts and all(isinstance(each, str) for each in texts) else value


def _tier(table: Any) -> Any:
    """A tier's table with the native types, which stand in it by format, in a field of their own."""
    if not isinstance(table, dict):
        return table
    return {key: value for key, value in table.items() if key not in FORMATS} | {
        "(types)": {key: value for key, value in table.items() if key in FORMATS}
    }


def _named(tiers: Any) -> Any:
    """Tables of tiers with the name of each in it."""
    if not isinstance(tiers, dict):
        return tiers
    return {name: {**table, "(name)": name} if isinstance(table, dict) else table for name, table in tiers.items()}


def _level_or_codec(settings: "VectorSettings") -> "VectorSettings":
    """Vectors are stored either by a level, with its settings, or by a codec, which has its own."""
    given = [each.name for each in fields(settings) if getattr(settings, each.name) != each.default]
    if settings.codec and (more := [name for name in given if name != "codec"]):
        raise ValueError(f"a codec has its own {more[0]}: remove vectors.{more[0]}, or vectors.codec")
    if not settings.codec and not settings.level:
        raise ValidationError.from_exception_data("vectors", [{"type": "missing", "loc": ("level",), "input": given}])
    return settings


def _registered(name: str) -> str:
    if name not in FORMATS:
        raise ValueError
    return name


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


# --- the values

Texts = Annotated[tuple[Text, ...], Field(min_length=1), LISTED]
FormatName = Annotated[str, AfterValidator(_registered)]


@dataclass(frozen=True)
class Tier:
    """How precisely a class of tensors is kept. `types` and `fallback` name a native type per format, where the recipe does."""

    __pydantic_config__ = CHECKED

    name: Annotated[str, not_a_key("name")]
    bits: Annotated[int, Strict(), one_of(BITS), Key(f"one of {_words(BITS)}", "how precisely the tier's tensors are kept")]
    types: Annotated[
        Mapping[FormatName, Text],
        not_a_key("types"),
        Table(
            "a table of native types by format",
            FORMATS,
            "a native type of the format",
            "the GGUF type, instead of the one that bits stand for",
            "by bits",
            inline=True,
        ),
    ] = field(default_factory=dict)
    fallback: Annotated[
        Mapping[FormatName, Text],
        Table(
            "a table of native types by format", FORMATS, "a native type of the format",
            "for shapes that can't take the first", "none: an error",
        ),
    ] = field(default_factory=dict)  # fmt: skip


UNQUANTIZED = Tier("kept", 32)
"""Norms, biases, position and type tables: too few to matter in bytes, so fp32 in every format."""


@dataclass(frozen=True)
class Rule:
    """Claims for `tier` every tensor that meets all of the conditions which are set."""

    __pydantic_config__ = CHECKED

    tier: Annotated[Text, Key("the name of a tier", "which tier the rule claims tensors for")]
    layers: Annotated[
        tuple[Annotated[Text, BeforeValidator(_layer_text)], ...],
        Field(min_length=1),
        LISTED,
        Key(
            'ranges like "2-4", "7" or "30%-80%"',
            "layers from 0, ends included, or shares of the depth; or a list of them",
            "any",
        ),
        AfterValidator(_layers),
    ] = ()
    roles: Annotated[
        Texts, Key("a list of roles", "roles or groups of them ([below](#roles))", "any"), AfterValidator(_roles)
    ] = ()
    names: Annotated[
        Texts, Key("a list of name patterns with * and ?", "patterns over GGUF or Hugging Face names", "any")
    ] = ()  # fmt: skip

    def __str__(self) -> str:
        parts = [
            f"{key} = {', '.join(values)}"
            for key, values in (("layers", self.layers), ("roles", self.roles), ("names", self.names))
            if values
        ]
        return f"{self.tier} ({'; '.join(parts)})"


@dataclass(frozen=True)
class CalibrationSettings:
    """Which texts importance is measured on. `imatrix`, when set, replaces the measurement."""

    __pydantic_config__ = CHECKED

    texts: Annotated[
        Text,
        Key(
            '"builtin", a .txt or .jsonl file, or a BEIR folder',
            'what importance and rounding are measured on: a text per line, or "text" and perhaps "title" and "kind"',
        ),
    ] = "builtin"
    tokens: Annotated[Count, Key("a number of tokens, at least 1", "how many of their tokens are read, about")] = 24_576
    imatrix: Annotated[
        Text | None, Key("an imatrix file in llama.cpp's GGUF format", "importance, instead of measuring it")
    ] = None  # fmt: skip


@dataclass(frozen=True)
class TorchaoSettings:
    """How values are stored ("portable", "packed" or "fast") and how many 4-bit ones share a scale."""

    __pydantic_config__ = CHECKED

    layout: Annotated[
        str,
        one_of(LAYOUTS),
        Key(f"one of {_words(LAYOUTS)}", "how values are stored and multiplied ([below](#torchaos-layouts))"),
    ] = LAYOUTS[0]  # fmt: skip
    group_size: Annotated[
        int, Strict(), one_of(GROUP_SIZES), Key(f"one of {_words(GROUP_SIZES)}", "values per scale at 4 bits")
    ] = GROUP_SIZES[0]  # fmt: skip


@dataclass(frozen=True)
class VectorSettings:
    """How the vectors that artifacts put out are stored: a level, with bounds fitted on the calibration texts, or the codec
    in a file. `dimensions`: how many of the first are kept; `widen` is the expansion factor of these; `asymmetric` leaves
    queries as they are.
    """

    __pydantic_config__ = CHECKED

    level: Annotated[
        str,
        one_of(LEVELS),
        Key(
            f"one of {_words(LEVELS)}",
            "how precisely the vectors are stored that come out ([vectors.md](vectors.md)); "
            "bounds are fitted on calibration.texts",
            "fp32, or the model's own codec",
        ),
    ] = ""
    codec: Annotated[
        Text | None, Key("a codec that tierexport vectors wrote", "the codec to store them by, instead of a level")
    ] = None  # fmt: skip
    dimensions: Annotated[
        Count | None, Key("a number of dimensions, at least 1", "the first ones alone are kept, brought to unit length", "all")
    ] = None  # fmt: skip
    scaling: Annotated[str, one_of(SCALINGS), Key(f"one of {_words(SCALINGS)}", "how bounds are chosen")] = SCALINGS[0]
    per_vector: Annotated[Flag, Key("true or false", "ranges as multiples of each vector's own size")] = False
    rotate: Annotated[Flag, Key("true or false", "a random rotation before everything else")] = False
    widen: Annotated[
        Count,
        Field(le=WIDEST),
        Key(f"a number from 1 to {WIDEST}", "so many times as many dimensions, by rotated copies"),
    ] = 1
    asymmetric: Annotated[Flag, Key("true or false", "documents are quantized, queries not")] = False


@dataclass(frozen=True)
class VerifySettings:
    """What artifacts are verified on (retrieval sets, an STS file), and what they have to reach."""

    __pydantic_config__ = CHECKED

    data: Annotated[
        Texts,
        Key("BEIR folders, ORG/NAME[@REVISION][:SPLIT] on a hub, or builtin", "BEIR or NanoBEIR sets to score retrieval on"),
    ] = ()
    sts: Annotated[
        Text | None, Key("a file of score, sentence, sentence with tabs between", "sentence pairs to correlate with")
    ] = None  # fmt: skip
    gates: Annotated[
        tuple[InstanceOf[Gate], ...],
        Field(min_length=1),
        Key('gates like "top10_retention >= 0.97"', "limits to be kept ([below](#gates))"),
        BeforeValidator(_gates),
    ] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the user declares; every path in it is absolute.

    `folder` is where the recipe lies, beside which there may be descriptions of models; `document` is the TOML that was
    read, overrides and absolute paths in it.
    """

    __pydantic_config__ = CHECKED

    name: Annotated[
        Text,
        matching(FILE_NAME),
        Key("letters, digits, . _ - only, at most 100, for it names files", "the recipe's name"),
    ]
    description: Annotated[Text, Key("a text", "one line, for the model card")] = ""
    model: Annotated[Text, Key("a folder, ORG/NAME[@REVISION], pypi:PACKAGE or a name in models/", "the fp32 model")]
    base_model: Annotated[
        Annotated[Text, matching(REPOSITORY)] | None,
        Key(
            "ORG/NAME of a hub",
            "where the model is published, for one in a local folder: artifacts then name that and no path of this machine",
            "known for a model of a hub",
        ),
    ] = None
    formats: Annotated[
        tuple[FormatName, ...],
        Field(min_length=1),
        AfterValidator(_once),
        LISTED,
        Key("a list of {formats}", "what is built", "both"),
    ] = field(default_factory=lambda: tuple(FORMATS))
    rounding: Annotated[
        str, one_of(ROUNDINGS), Key(_words(ROUNDINGS), "how weights are rounded to their types ([below](#rounding))")
    ] = ROUNDINGS[0]  # fmt: skip
    tiers: Annotated[Mapping[str, Annotated[Tier, BeforeValidator(_tier)]], BeforeValidator(_named), Table("a table of tiers")]
    rules: Annotated[tuple[Rule, ...], Field(min_length=1), Table("a list of [[rules]]")]
    calibration: CalibrationSettings = CalibrationSettings()
    torchao: TorchaoSettings = TorchaoSettings()
    vectors: Annotated[VectorSettings, AfterValidator(_level_or_codec)] | None = None
    verify: VerifySettings = VerifySettings()
    folder: Annotated[Path, not_a_key("folder")]
    document: Annotated[Mapping[str, Any], not_a_key("document")]


def recipe_keys() -> dict[str, Key]:
    """Every key that a recipe may have, with the formats that are registered. In paths NAME and N stand for any."""
    formats = " and ".join(FORMATS)
    return {path: replace(key, expected=key.expected.replace("{formats}", formats)) for path, key in keys_of(Recipe).items()}


def settable_keys(document: Mapping[str, Any]) -> list[str]:
    """Every key that --set may name in a recipe's document: the patterns of `recipe_keys`, with its tiers and rules in them."""
    tiers, rules = document.get("tiers", {}), document.get("rules", [])
    found: list[str] = []
    for pattern, key in recipe_keys().items():
        if key.meaning and ".NAME" in pattern:
            found += [pattern.replace("NAME", name) for name in tiers]
        elif key.meaning and ".N." in pattern:
            found += [pattern.replace(".N.", f".{number}.") for number in range(len(rules))]
        elif key.meaning:
            found.append(pattern)
    return found
