"""The YAML head of a model card: what it states of a source's licence and languages.

Read as hubs read it, by YAML 1.2, in which `no` is Norwegian and not false; every value stays the text that it is written as.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tierexport.base.records import Licence

HUB = "https://huggingface.co"
"""Where a licence file is linked that a source on the hub names by its path."""

_HEAD = re.compile(r"\s*---[ \t]*\r?\n(.*?)(?:^|\r?\n)---[ \t]*(?:\r?\n|$)", re.DOTALL | re.MULTILINE)
_BEGUN = re.compile(r"\s*---[ \t]*\r?\n")

_NOTHING = ("", "~", "null", "Null", "NULL", "none", "None")
"""What stands for no value in YAML, or was written for it by a program."""

_UNSTATED = Licence()


@dataclass(frozen=True)
class Head:
    """What a card's head states, as it is written; `problem` is why it can't be read."""

    licence: Licence = _UNSTATED
    languages: tuple[str, ...] = ()
    problem: str | None = None


def read_head(path: Path) -> Head:
    """The head of a card; an empty one where there is no card, or none with a head."""
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        return Head()
    except UnicodeDecodeError:
        return Head(problem="it is not UTF-8")
    except OSError as error:
        return Head(problem=str(error.strerror))
    if not (found := _HEAD.match(text)):
        return Head(problem="no line of --- ends it") if _BEGUN.match(text) else Head()
    return _parsed(found[1])


def _parsed(block: str) -> Head:
    import yaml

    try:
        stated = yaml.load(block, yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        at = f" in line {error.problem_mark.line + 2}" if error.problem_mark else ""
        return Head(problem=f"it is not YAML{at}")
    except (yaml.YAMLError, ValueError, RecursionError):
        return Head(problem="it is not YAML")
    if not stated:
        return Head()
    if not isinstance(stated, dict):
        return Head(problem="it is YAML, but not a table of keys")
    name, link = (next(iter(_texts(stated.get(key))), None) for key in ("license_name", "license_link"))
    return Head(Licence(_texts(stated.get("license")), name, link), _texts(stated.get("language")))


def _texts(value: Any) -> tuple[str, ...]:
    """What a key has for values, each once."""
    listed = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(each.strip() for each in listed if isinstance(each, str) and each.strip() not in _NOTHING))


def linked(licence: Licence, base_model: str | None) -> Licence:
    """The licence with a link that leads somewhere from everywhere: a path in the source's repository, or none."""
    link = licence.link
    if link and not re.match(r"https?://", link):
        inside = link.removeprefix("./")
        leads = base_model and re.fullmatch(r"(?!\.\.?/)[\w.][\w./ -]*", inside) and ".." not in inside.split("/")
        link = f"{HUB}/{base_model}/blob/main/{inside.replace(' ', '%20')}" if leads else None
    return Licence(licence.identifiers, licence.name, link)
