"""The fp32 model's vectors, from the cache or made now.

Vectors are kept under a key of all that makes them: the question asked, in full, the versions of the libraries, and the code
of the modules that answer it, with everything that they import. Many texts are encoded in shards, by whatever workers there
are; what is done is the same in one process and in many.
"""

import functools
import importlib.metadata
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from tierexport.base.archive import tools
from tierexport.base.codebase import digest_of
from tierexport.base.digests import value_digest
from tierexport.base.errors import MachineError, SourceError
from tierexport.base.paths import cache_dir
from tierexport.base.progress import duration
from tierexport.base.records import Encoded, Source
from tierexport.base.stages import Stages
from tierexport.base.workers import HERE, Workers, check_keys
from tierexport.model.batches import prompt_for
from tierexport.model.encoder import encode, open_model
from tierexport.model.vector_store import SHARD_TEXTS, VectorStore, not_finite, open_encoded

LIBRARIES = ("tokenizers", "sentencepiece", "numpy", "mslk")
"""Packages beside those that artifacts depend on which vectors may depend on, where they are installed."""

Question = Mapping[str, object]
"""What is asked of a model, in full: two questions are equal only where the vectors are."""

ENCODER = ("tierexport.model.encoder", "tierexport.model.vector_store")
"""Modules whose code decides the fp32 model's vectors."""


class Reference:
    """The fp32 model, opened on a device when something has to be encoded there that the cache lacks."""

    code: tuple[str, ...] = ENCODER

    def __init__(self, source: Source, say: Callable[[str], None] = lambda _: None, workers: Workers = HERE) -> None:
        """`say`: called with what is being encoded; `workers`: what encodes."""
        self.source, self.say, self.workers = source, say, workers
        self.model = functools.cache(functools.partial(open_model, source))
        self.prompts = {kind: prompt_for(source.prompts, kind) for kind in ("query", "passage")}

    def __reduce__(self) -> tuple[Any, ...]:
        """Sent to a worker, it is opened there."""
        return Reference, (replace(self.source, path=self.source.path.absolute()),)

    @functools.cached_property
    def max_tokens(self) -> int:
        """Where texts are cut."""
        return self.source.max_tokens or self.model("cpu").max_seq_length or 512

    def encode(self, name: str, kind: str, texts: Sequence[str]) -> Encoded:
        """Vectors of texts of a kind, "query" or "passage", from the cache or made now; `name` is what is said of them.

        Raises SourceError where the model makes NaN or infinity of a text: nothing could be compared with that.
        """
        found = answered(self, self.prompts[kind], texts, self.workers, lambda done: self.say(f"fp32: {name}{done}"))
        if len(bad := not_finite(found)):
            raise SourceError(
                f"{self.source.name}: in fp32 the vectors of {len(bad)} of {len(texts)} texts hold NaN or infinity, of "
                f"{texts[bad[0]][:60]!r} for one: no artifact can be compared with that"
            )
        return found

    def question(self, prompt: str, texts: Sequence[str]) -> Question:
        """What is asked of the fp32 model, in full."""
        return {
            "of": "the fp32 model",
            "model": self.source.digest,
            "pooling": self.source.pooling,
            "limit": self.source.max_tokens,
            "device": "cpu",
            "dtype": "float32",
            "prompt": prompt,
            "texts": list(texts),
        }

    def made(self, texts: Sequence[str], prompt: str, folder: Path) -> Encoded:
        """The vectors, made now and written to a folder."""
        return encode(self.model("cpu"), texts, prompt, VectorStore(folder))


class Asked(Protocol):
    """What encodes texts, here or, sent to a worker, there; `code`: the modules that decide its vectors."""

    code: tuple[str, ...]

    def question(self, prompt: str, texts: Sequence[str]) -> Question: ...

    def made(self, texts: Sequence[str], prompt: str, folder: Path) -> Encoded: ...


@dataclass(frozen=True)
class Shard:
    """Texts that are encoded together, each prefixed with `prompt`."""

    prompt: str
    texts: Sequence[str]


@dataclass(frozen=True)
class Keeping:
    """The work of encoding a shard: its vectors are in the cache afterwards, under the key that is returned."""

    asked: Asked

    def __call__(self, shard: Shard) -> str:
        key = self.key(shard)
        _kept().run(key, key, lambda folder: _discard(self.asked.made(shard.texts, shard.prompt, folder)))
        return key

    def key(self, shard: Shard) -> str:
        """What the vectors of a shard are kept under."""
        return key_of(self.asked.question(shard.prompt, shard.texts), self.asked.code)


def answered(
    asked: Asked, prompt: str, texts: Sequence[str], workers: Workers, say: Callable[[str], None], gpu: bool = False
) -> Encoded:
    """Vectors from the cache, or made now and kept there: shard by shard, so that what was killed goes on where it was.

    `say`: called with how far that is, " (3 of 11, 40 s left)". Raises MachineError where workers keep shards elsewhere.
    """
    work, kept = Keeping(asked), _kept()
    shards = [slice(first, first + SHARD_TEXTS) for first in range(0, max(len(texts), 1), SHARD_TEXTS)]

    def parts() -> Iterator[Shard]:
        return (Shard(prompt, texts[rows]) for rows in shards)

    keys = [work.key(each) for each in parts()]
    say("")
    if len(keys) == 1:
        work(next(parts()))
        return open_encoded(kept.root / keys[0])

    def join(folder: Path) -> None:
        there = {key for key in keys if kept.record(key)}
        missing = (part for key, part in zip(keys, parts(), strict=True) if key not in there)
        made = workers.map(work, missing, _counted(len(keys), len(there), say), gpu)
        _check_made(made, [key for key in keys if key not in there], kept)
        VectorStore(folder).join(kept.root / key for key in keys)

    key = value_digest(keys)
    whole = kept.run(key, key, join)
    for each in keys:
        kept.drop(each)
    return open_encoded(whole)


def _kept() -> Stages:
    """Where vectors are kept, each stage's folder and record under its key."""
    return Stages(cache_dir() / "vectors")


def _counted(total: int, before: int, say: Callable[[str], None]) -> Callable[[], None]:
    """What is called after each shard, and says how many of `total` are done and how long the others will take."""
    began, done = time.monotonic(), itertools.count(1)

    def step() -> None:
        now = next(done)
        left = (time.monotonic() - began) / now * (total - before - now)
        say(f" ({before + now} of {total}, {duration(left)} left)")

    return step


def _check_made(made: Sequence[str], expected: Sequence[str], kept: Stages) -> None:
    """Raises MachineError where workers have made something else, or elsewhere."""
    check_keys(made, expected)
    if away := [key for key in expected if not (kept.root / key).is_dir()]:
        raise MachineError(
            f"{len(away)} of {len(expected)} shards that workers made are not in {kept.root}: TIEREXPORT_CACHE has to name a "
            "folder that all machines share"
        )


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
