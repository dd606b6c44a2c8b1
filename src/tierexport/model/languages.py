"""Which languages a model speaks, as far as there are texts in them."""

from tierexport.base.records import Source
from tierexport.datasets.calibration import builtin_languages
from tierexport.model.folder import read_object, transformer_folder

MANY_TOKENS = 100_000
"""A vocabulary from this size on is taken for one of many languages, where a model's card names none."""


def languages_of(source: Source) -> list[str]:
    """The codes of those languages with built-in texts that the source's card names, or all where it is for many.

    Without a word of the card the size of the vocabulary decides between English and all; where there are texts in none of
    the languages that it names, all are taken.
    """
    known = builtin_languages()
    named = [each for each in known if each in {name.partition("-")[0].lower() for name in source.languages}]
    if named or source.languages:
        return named or known
    size = read_object(transformer_folder(source.path) / "config.json", "").get("vocab_size")
    return known if isinstance(size, int) and size >= MANY_TOKENS else ["en"]
