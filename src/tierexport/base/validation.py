"""Strict reading of TOML by pydantic: what is known of each key, and one message for what is wrong with a document.

A document is declared as a frozen dataclass: a field that the document may set is annotated with a `Key` or a `Table`, its
docs are written from that, and pydantic checks it by its type. Fields that are `not_a_key` are filled in by the reader.
"""

import dataclasses
import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, is_dataclass, replace
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, Strict, ValidationError
from pydantic_core import CoreSchema, core_schema

CHECKED = ConfigDict(extra="forbid")
"""A declaration's `__pydantic_config__`. Its types are strict one by one: pydantic's own strict mode takes no table for a
dataclass."""

REQUIRED = "required"

T = TypeVar("T")

# --- types of values

Text = Annotated[str, Strict(), Field(min_length=1)]
Count = Annotated[int, Strict(), Field(ge=1)]
Flag = Annotated[bool, Strict()]


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


LISTED = BeforeValidator(_listed)
"""Takes a lone value for a list of one."""


def one_of(allowed: Collection[T]) -> AfterValidator:
    """Checks that a value is among those that are allowed."""

    def check(value: T) -> T:
        if value not in allowed:
            raise ValueError
        return value

    return AfterValidator(check)


def matching(pattern: str | re.Pattern[str]) -> AfterValidator:
    """Checks that a text is what a regular expression describes, from end to end."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError
        return value

    return AfterValidator(check)


# --- what is known of keys


@dataclass(frozen=True)
class Table:
    """A table or list of tables: what it has to be.

    `entries` are its keys where it has a value per entry instead of a key per field, such as one per format; `each` is what
    each value has to be, `meaning` what the first does, `default` what holds where one is not there. `inline`: the entries
    stand in the table around it, and the reader puts them into the field.
    """

    expected: str
    entries: Collection[str] = ()
    each: str = ""
    meaning: str = ""
    default: str = ""
    inline: bool = False


@dataclass(frozen=True)
class Key:
    """A key: what its value has to be, what it does, and its default as documents show it, "" for that of the field."""

    expected: str
    meaning: str = ""
    default: str = ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Whatever is wrong within the value is one mistake, about the whole value."""
        return core_schema.custom_error_schema(
            handler(source), custom_error_type="expected", custom_error_message="is not what is expected"
        )


def not_a_key(name: str) -> Any:
    """Marks a field that is no key of the document; the reader fills it in, under its name in parentheses."""
    return Field(validation_alias=f"({name})")


def keys_of(declared: type, path: str = "") -> dict[str, Key]:
    """Every key of a declaration by its dotted path, in which NAME stands for any name and N for any number."""
    hints = get_type_hints(declared, include_extras=True)
    found: dict[str, Key] = {}
    for field in dataclasses.fields(declared):
        annotated = get_args(hints[field.name]) if get_origin(hints[field.name]) is Annotated else (hints[field.name],)
        known = next((each for each in annotated if isinstance(each, Key | Table)), None)
        place = f"{path}.{field.name}" if path else field.name
        if isinstance(known, Key):
            found[place] = replace(known, default=known.default or _shown_default(field))
        elif nested := _nested(annotated[0]):
            kind, below = nested
            found |= {place: Key(known.expected if known else "a table")} | keys_of(kind, place + below)
        elif known:
            found |= _entries(known, path if known.inline else place)
    return found


def _entries(table: Table, place: str) -> Iterator[tuple[str, Key]]:
    """A table with a value per entry, and its entries, which stand at `place`."""
    if not table.inline:
        yield place, Key(table.expected)
    for number, entry in enumerate(table.entries):
        yield f"{place}.{entry}", Key(table.each, f"the same for {entry}" if number else table.meaning, table.default)


def _nested(annotation: Any) -> tuple[type, str] | None:
    """The declaration that a field's type has in it, and what its path has for the place in a mapping or a list."""
    if isinstance(annotation, type) and is_dataclass(annotation):
        return annotation, ""
    for each in get_args(annotation):
        if found := _nested(each):
            origin = get_origin(annotation)
            return found[0], {tuple: ".N", Mapping: ".NAME"}.get(origin, "") + found[1]
    return None


def _shown_default(field: dataclasses.Field[Any]) -> str:
    if field.default is MISSING:
        return REQUIRED if field.default_factory is MISSING else "none"
    if field.default is None or field.default == ():
        return "none"
    return str(field.default).lower() or "empty"


# --- what is wrong with a document


def first_mistake(error: ValidationError, keys: Mapping[str, Key]) -> str:
    """What is wrong, in one message: the key's path, its value, what it has to be, and the nearest name of an unknown key.

    Of several mistakes an unknown key is told first: a key that is missing may be the one that was misspelt.
    """
    mistakes = error.errors(include_url=False)
    found = min(mistakes, key=lambda each: not _is_unknown(each))
    parts = [str(part) for part in found["loc"] if part != "[key]" and not re.fullmatch(r"\(\w+\)", str(part))]
    path, pattern = ".".join(parts), _pattern(parts, keys)
    if _is_unknown(found):
        return f"unknown key {path!r}; {_hint(parts, keys)}"
    if found["type"] == "value_error":
        return f"{path}: {found['ctx']['error']}"
    expected = keys[pattern].expected if pattern in keys else "a table"
    if found["type"] == "missing":
        return f"{path} is missing: it has to be {expected}"
    return f"{path} = {found['input']!r} has to be {expected}"


def _is_unknown(mistake: Any) -> bool:
    return bool(mistake["type"] == "unexpected_keyword_argument" or mistake["loc"][-1:] == ("[key]",))


def _pattern(parts: Sequence[str], keys: Mapping[str, Key]) -> str:
    """The path as `keys_of` has it, with NAME and N in it; "" where no key has it."""
    for key in keys:
        known = key.split(".")[: len(parts)]
        if len(known) == len(parts) and all(each in (part, "NAME", "N") for each, part in zip(known, parts, strict=True)):
            return ".".join(known)
    return ""


def _hint(parts: Sequence[str], keys: Mapping[str, Key]) -> str:
    """The known key that is nearest to the last part of a path, or all that are known in its place."""
    around = _pattern(parts[:-1], keys)
    below = f"{around}." if around else ""
    known = list(dict.fromkeys(key.removeprefix(below).partition(".")[0] for key in keys if key.startswith(below)))
    near = difflib.get_close_matches(parts[-1], known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a message on an unknown name: the known one that is nearest, or all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
