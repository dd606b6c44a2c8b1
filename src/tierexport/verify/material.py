"""The texts of a verification, and what an encoder makes of them."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from tierexport.base.errors import DataError
from tierexport.base.paths import expanded
from tierexport.base.records import Encoded, RetrievalSet
from tierexport.datasets.beir import read_retrieval_set
from tierexport.datasets.calibration import screen
from tierexport.datasets.sts import SentencePairs, read_sts
from tierexport.recipe.schema import VerifySettings
from tierexport.vectors.codecs import Codec
from tierexport.verify.retrieval import Vectors


@dataclass(frozen=True)
class TextGroup:
    """Texts of one kind, "query" or "passage", that are encoded together; `name` is what is said of them."""

    name: str
    kind: str
    texts: Sequence[str]


@dataclass(frozen=True)
class Material:
    """The texts of a verification: the screen, in `languages`, by their codes; retrieval sets; and sentence pairs."""

    sets: tuple[RetrievalSet, ...] = ()
    sts: SentencePairs | None = None
    languages: tuple[str, ...] = ("en",)

    @functools.cached_property
    def screen(self) -> TextGroup:
        """The built-in sentences, language by language."""
        return TextGroup("screen", "passage", tuple(text for each in self.languages for text in screen(each)))

    @functools.cached_property
    def screen_languages(self) -> tuple[str, ...]:
        """The language of each sentence of the screen."""
        return tuple(each for each in self.languages for _ in screen(each))

    @property
    def largest(self) -> TextGroup:
        """The group with the most texts."""
        groups = [self.screen, *(group for each in self.sets for group in (documents_of(each), queries_of(each)))]
        return max([*groups, *([pairs_of(self.sts)] if self.sts else [])], key=lambda group: len(group.texts))


@dataclass(frozen=True)
class Encodings:
    """What one encoder made of a verification's texts; `sets` in the order of the material's."""

    screen: Encoded
    sets: tuple[Vectors, ...]
    sts: Encoded | None

    @classmethod
    def of(cls, material: Material, encode: Callable[[TextGroup], Encoded]) -> "Encodings":
        """Encode every group."""
        return cls(
            encode(material.screen),
            tuple(Vectors(encode(queries_of(each)), encode(documents_of(each))) for each in material.sets),
            encode(pairs_of(material.sts)) if material.sts else None,
        )

    @property
    def every(self) -> tuple[Encoded, ...]:
        """All of them, in one order."""
        sets = [part for each in self.sets for part in (each.queries, each.documents)]
        return (self.screen, *sets, *([self.sts] if self.sts else []))

    def stored(self, codec: Codec) -> "Encodings":
        """The same as they come back from a codec; queries as they are, where it leaves them."""

        def restored(found: Encoded) -> Encoded:
            return replace(found, vectors=codec.restored(found.vectors))

        sets = tuple(
            Vectors(each.queries if codec.asymmetric else restored(each.queries), restored(each.documents))
            for each in self.sets
        )
        return Encodings(restored(self.screen), sets, restored(self.sts) if self.sts else None)


def queries_of(data: RetrievalSet) -> TextGroup:
    """A set's queries."""
    return TextGroup(f"{data.name} queries", "query", data.queries)


def documents_of(data: RetrievalSet) -> TextGroup:
    """A set's documents."""
    return TextGroup(f"{data.name} documents", "passage", data.documents)


def pairs_of(pairs: SentencePairs) -> TextGroup:
    """The sentences of pairs, pair after pair."""
    return TextGroup("sts", "passage", pairs.sentences)


def read_material(settings: VerifySettings, languages: Iterable[str] = ()) -> Material:
    """Read what a recipe or a command names; the screen has English sentences and those in these languages.

    Raises DataError, or MachineError for a hub out of reach.
    """
    screened = tuple(dict.fromkeys(["en", *languages]))
    sets = tuple(read_retrieval_set(each) for each in settings.data)
    if twice := [name for name, count in Counter(each.name for each in sets).items() if count > 1]:
        raise DataError(f"two retrieval sets are named {twice[0]!r}: nobody could tell their figures apart")
    return Material(sets, read_sts(expanded(settings.sts)) if settings.sts else None, screened)
