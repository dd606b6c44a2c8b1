"""The fp32 model's vectors, from the cache or made now.

Vectors are kept under a key of all that makes them: the question asked, in full, the versions of the libraries, and the code
of the modules that answer it, with everything that they import.
"""

import functools
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tierexport.base.archive import tools
from tierexport.base.codebase import digest_of
from tierexport.base.digests import value_digest
from tierexport.base.errors import SourceError
from tierexport.base.paths import cache_dir
from tierexport.base.records import Encoded, Source
from tierexport.base.stages import Stages
from tierexport.model.batches import prompt_for
from tierexport.model.encoder import encode, open_model
from tierexport.model.vector_store import VectorStore, not_finite, open_encoded

LIBRARIES = ("tokenizers", "sentencepiece", "numpy", "mslk")
"""Packages beside those that artifacts depend on which vectors may depend on, where they are installed."""

Question = Mapping[str, object]
"""What is asked of a model, in full: two questions are equal only where the vectors are."""

ENCODER = ("tierexport.model.encoder", "tierexport.model.vector_store")
"""Modules whose code decides the fp32 model's vectors."""


class Reference:
    """The fp32 model, opened on a device when something has to be encoded there that the cache lacks."""

    def __init__(self, source: Source, say: Callable[[str], None] = lambda _: None) -> None:
        """`say`: called with what is being encoded."""
        self.source, self.say = source, say
        self.model = functools.cache(functools.partial(open_model, source))
        self.prompts = {kind: prompt_for(source.prompts, kind) for kind in ("query", "passage")}

    @functools.cached_property
    def max_tokens(self) -> int:
        """Where texts are cut."""
        return self.source.max_tokens or self.model("cpu").max_seq_length or 512

    def encode(self, name: str, kind: str, texts: list[str]) -> Encoded:
        """Vectors of texts of a kind, "query" or "passage", from the cache or made now; `name` is what is said of them.

        Raises SourceError where the model makes NaN or infinity of a text: nothing could be compared with that.
        """
        self.say(f"fp32: {name}")
        prompt = self.prompts[kind]
        question = reference_question(self.source, prompt, texts)
        found = answered(question, ENCODER, lambda folder: encode(self.model("cpu"), texts, prompt, VectorStore(folder)))
        if len(bad := not_finite(found)):
            raise SourceError(
                f"{self.source.name}: in fp32 the vectors of {len(bad)} of {len(texts)} texts hold NaN or infinity, of "
                f"{texts[bad[0]][:60]!r} for one: no artifact can be compared with that"
            )
        return found


def reference_question(source: Source, prompt: str, texts: Sequence[str]) -> Question:
    """What is asked of the fp32 model, in full."""
    return {
        "of": "the fp32 model",
        "model": source.digest,
        "pooling": source.pooling,
        "limit": source.max_tokens,
        "device": "cpu",
        "dtype": "float32",
        "prompt": prompt,
        "texts": list(texts),
    }


def answered(question: Question, code: tuple[str, ...], make: Callable[[Path], Encoded]) -> Encoded:
    """Vectors from the cache, or made now and kept there, in a folder that the whole key names."""
    key = key_of(question, code)
    return open_encoded(Stages(cache_dir() / "vectors").run(key, key, lambda folder: _discard(make(folder))))


def key_of(question: Question, code: tuple[str, ...]) -> str:
    """The key that the answer to a question is kept under; `code`: the modules that answer it."""
    return value_digest([digest_of(*code), tools(), _libraries(), question])


@functools.cache
def _libraries() -> dict[str, str | None]:
    return {name: _version(name) for name in LIBRARIES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _discard(_: Encoded) -> None:
    """A stage's maker returns nothing: what it wrote is what counts."""
