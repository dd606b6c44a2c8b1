"""Licence and languages in the head of a card that is written, as hubs want them stated."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from tierexport.base.records import Licence

_LICENCES = """afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
    cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
    creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0
    gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl
    ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib"""

LICENCES = frozenset(_LICENCES.split())
"""The identifiers that a Hugging Face hub takes as `license`; it refuses a card with another."""

_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
_REGIONAL = re.compile(r"([a-z]{2,3})[-_][a-z0-9]+(?:[-_][a-z0-9]+)*", re.IGNORECASE)


def head_fields(licence: Licence, languages: Sequence[str], checked: bool = False) -> dict[str, Any]:
    """Licence and languages as keys of a card's head that a hub takes.

    An identifier that hubs don't know becomes `other` with its text for a name, unless the source's own hub has taken it
    (`checked`). A language with a region (zh-CN) is stated by its own code, and whole as `language_bcp47`; what is no code is
    left out.
    """
    return {**_licence_fields(licence, checked), **_language_fields(languages)}


def _licence_fields(licence: Licence, checked: bool) -> dict[str, Any]:
    if not licence.identifiers:
        return {"license": "other", "license_name": licence.name, "license_link": licence.link} if licence.name else {}
    known = [each if checked and _IDENTIFIER.fullmatch(each) else _identifier(each) for each in licence.identifiers]
    identifiers = list(dict.fromkeys(each for each in known if each))
    if None in known:
        return {"license": "other", "license_name": licence.name or str(licence), "license_link": licence.link}
    stated = {"license": identifiers[0] if len(identifiers) == 1 else identifiers}
    return {**stated, "license_name": licence.name, "license_link": licence.link}


def _identifier(text: str) -> str | None:
    """The hub's identifier that a text differs from in case and spaces alone, or None."""
    plain = re.sub(r"\s+", "-", text.lower())
    return plain if plain in LICENCES else None


def _language_fields(languages: Sequence[str]) -> dict[str, Any]:
    regional = [each for each in languages if _REGIONAL.fullmatch(each)]
    codes = list(dict.fromkeys(_codes(languages)))
    return {"language": codes or None, "language_bcp47": regional or None}


def _codes(languages: Sequence[str]) -> Iterator[str]:
    for each in languages:
        if _LANGUAGE.fullmatch(each.lower()):
            yield each.lower()
        elif found := _REGIONAL.fullmatch(each):
            yield found[1].lower()


def unstated(languages: Sequence[str]) -> list[str]:
    """The languages that a card's head can't state, for they are no codes."""
    return [each for each in languages if not list(_codes([each]))]
