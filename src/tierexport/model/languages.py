"""Which languages a model speaks, as far as there are texts in them."""

from collections.abc import Iterable

from tierexport.base.records import Source
from tierexport.datasets.calibration import builtin_languages
from tierexport.model.folder import read_object, transformer_folder

MANY_TOKENS = 100_000
"""A vocabulary from this size on is taken for one of many languages, where a model's card names none."""

MANY = frozenset(("multilingual", "mul"))
"""What a card has for a language where its model is for many: a word, and the code of ISO 639-2."""

NAMES = {
    "ar": ("Arabic", "ara"),
    "bg": ("Bulgarian", "bul"),
    "bn": ("Bengali", "ben"),
    "cs": ("Czech", "ces"),
    "da": ("Danish", "dan"),
    "de": ("German", "deu"),
    "el": ("Greek", "ell"),
    "en": ("English", "eng"),
    "es": ("Spanish", "spa"),
    "fa": ("Persian", "fas"),
    "fi": ("Finnish", "fin"),
    "fr": ("French", "fra"),
    "he": ("Hebrew", "heb"),
    "hi": ("Hindi", "hin"),
    "hu": ("Hungarian", "hun"),
    "id": ("Indonesian", "ind"),
    "it": ("Italian", "ita"),
    "ja": ("Japanese", "jpn"),
    "ko": ("Korean", "kor"),
    "nl": ("Dutch", "nld"),
    "pl": ("Polish", "pol"),
    "pt": ("Portuguese", "por"),
    "ro": ("Romanian", "ron"),
    "ru": ("Russian", "rus"),
    "sv": ("Swedish", "swe"),
    "th": ("Thai", "tha"),
    "tr": ("Turkish", "tur"),
    "uk": ("Ukrainian", "ukr"),
    "vi": ("Vietnamese", "vie"),
    "zh": ("Chinese", "zho"),
}
"""English name and three-letter code (ISO 639-3) of each language with built-in texts, by its two-letter code (ISO 639-1)."""


def language_name(code: str) -> str:
    """What a language is called in English, or its code where that is not known."""
    return NAMES.get(code, (code,))[0]


def languages_of(source: Source) -> list[str]:
    """The codes of those languages with built-in texts that the source's card names, or all where it is for many.

    Without a word of the card the size of the vocabulary decides between English and all; where there are texts in none of
    the languages that it names, all are taken.
    """
    known = builtin_languages()
    if source.languages:
        return named(source.languages) or known
    size = read_object(transformer_folder(source.path) / "config.json", "").get("vocab_size")
    return known if isinstance(size, int) and size >= MANY_TOKENS else ["en"]


def speaks(source: Source, language: str) -> bool:
    """Whether the source's card names a language, which is given by its two-letter code, or says that it is for many."""
    return language in named(source.languages) or bool(MANY & _first_parts(source.languages))


def named(languages: Iterable[str]) -> list[str]:
    """The two-letter codes, in order, of languages that are named by such a code ("en", "fr-CA", "pt_BR"), by three
    letters, or in English.
    """
    first = _first_parts(languages)
    return [code for code, names in NAMES.items() if first & {code, *(name.lower() for name in names)}]


def _first_parts(languages: Iterable[str]) -> set[str]:
    """What stands before a region or a script, in small letters."""
    return {each.replace("_", "-").partition("-")[0].strip().lower() for each in languages}
