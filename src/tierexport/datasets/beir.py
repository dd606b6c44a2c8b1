"""Retrieval sets: from what the user names to a checked set, whichever of BEIR's layouts it has.

A set is a folder or `ORG/NAME[@REVISION]` on a hub. Its parts lie as the BEIR benchmark
distributes them, or as repositories of the hub do:

    BeIR/scifact               corpus.jsonl.gz, queries.jsonl.gz, and in BeIR/scifact-qrels test.tsv
    BeIR/nfcorpus              corpus/corpus-*.parquet, queries/queries-*.parquet, qrels as above
    mteb/scifact               corpus.jsonl, queries.jsonl, qrels/test.tsv or .jsonl
    newer sets of mteb         corpus/test-*.parquet, queries/test-*.parquet, data/test-*.parquet
    zeta-alpha-ai/NanoSciFact  corpus/train-*.parquet, queries/train-*.parquet, qrels/train-*.parquet
    sentence-transformers/NanoBEIR-en  the same, with a split per set: corpus/NanoSciFact-*.parquet

What published sets have in them beside that is read as BEIR's own loader reads it, and counted.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tierexport.base.errors import DataError
from tierexport.base.hub import fetch, is_hub_id
from tierexport.base.paths import expanded
from tierexport.base.records import RetrievalSet
from tierexport.datasets.judgements import read_judgements
from tierexport.datasets.stored_texts import StoredTexts
from tierexport.datasets.textfiles import (
    BUILTIN,
    COMPRESSIONS,
    TEXT_COLUMNS,
    as_id,
    as_text,
    checked_id,
    checked_text,
    read_records,
)

QRELS = ("qrels/*.tsv", "qrels/*.jsonl", "qrels/*.parquet", "data/*.parquet", "default/*.parquet")
LAYOUTS = {
    "corpus": ("corpus.jsonl", "corpus/*.parquet"),
    "queries": ("queries.jsonl", "queries/*.parquet"),
    "qrels": QRELS,
    "sister": ("*.tsv", *QRELS),
    "instruction": ("instruction/*.parquet", "instruction/*.jsonl"),
}
"""Where each part may lie, `*` being the split; the first that has it counts. "sister": qrels in NAME-qrels; "instruction":
what MTEB's sets with instructions have for each query."""

ODD = {
    "missing documents": ("judged document is not in the corpus", "judged documents are not in the corpus"),
    "missing queries": ("judged query is missing", "judged queries are missing"),
    "empty documents": ("empty document", "empty documents"),
    "empty queries": ("judged query is empty", "judged queries are empty"),
    "twice": ("text stands there twice", "texts stand there twice"),
    "judged twice": ("judgement stands there twice", "judgements stand there twice"),
    "without answer": ("query has no relevant document and scores 0", "queries have no relevant document and score 0"),
}
"""What a set may have that is unusual, for one and for several."""

_FILE = re.compile(r"(?P<split>.+?)(-\d+-of-\d+(-[0-9a-f]+)?)?\.(jsonl|tsv|parquet)(\.gz|\.xz)?")
"""A file's name: its split and, for parquet, its shard."""


def split_off(name: str, base: Path) -> tuple[str, str | None]:
    """A set's name without its `:SPLIT`, and the split; what has a colon in its name stays whole."""
    head, colon, split = name.rpartition(":")
    return (head, split) if colon and not (base / expanded(name)).exists() else (name, None)


def read_retrieval_set(name: str) -> RetrievalSet:
    """The set that FOLDER[:SPLIT], ORG/NAME[@REVISION][:SPLIT] or "builtin" names; of a folder and
    a repository the folder wins.

    Without a split it is the test split, or the only one. The revision is that of the texts: qrels in
    a repository of their own are taken at its newest. Raises DataError for a set that is not there or
    contradicts itself, MachineError when the hub can't be reached.
    """
    if name == "builtin":
        return replace(read_beir(BUILTIN / "retrieval"), name=name)
    place, split = split_off(name, Path())
    folder = expanded(place)
    if folder.is_dir():
        return read_beir(Path(os.path.abspath(folder)), split)  # noqa: PTH100  # a link keeps its name
    if not is_hub_id(place):
        raise DataError(
            f"there is no retrieval set {name!r}: it is no folder, no ORG/NAME[@REVISION][:SPLIT] of a hub, and not builtin"
        )
    repository, _, revision = place.partition("@")
    folder = _fetch(repository, revision or None, "corpus", "queries", "qrels", "instruction")
    return _read(name, folder, folder if _splits(folder, "qrels") else _fetch_qrels(repository), split)


def _fetch_qrels(repository: str) -> Path:
    try:
        return _fetch(f"{repository}-qrels", None, "sister")
    except DataError as error:
        raise DataError(f"{repository} has no qrels of its own, and {error}") from error


def _fetch(repository: str, revision: str | None, *parts: str) -> Path:
    patterns = [f"{pattern}{suffix}" for part in parts for pattern in LAYOUTS[part] for suffix in COMPRESSIONS]
    return fetch("dataset", repository, revision, patterns, DataError)


def read_beir(folder: Path, split: str | None = None) -> RetrievalSet:
    """The set in a folder of one of the layouts; its qrels may lie beside it, in NAME-qrels.

    Title and text of a document are joined by a space, as the BEIR benchmark does; queries without a judgement are
    left out; a judgement without a score is a 1. Judged documents that the corpus lacks stay judged, so that no ranking is
    ideal without them; judged queries that are missing are left out. Raises DataError for a folder that contradicts itself.
    """
    sister = folder.parent / f"{folder.name}-qrels"
    judged = sister if sister.is_dir() and not _splits(folder, "qrels") else folder
    return _read(f"{folder.name}:{split}" if split else folder.name, folder, judged, split)


def _read(name: str, folder: Path, judged: Path, split: str | None) -> RetrievalSet:
    part = "qrels" if judged == folder else "sister"
    found = _splits(judged, part)
    split = split or (next(iter(found)) if len(found) == 1 else "test")
    if split not in found:
        raise _missing(judged, part, split, found, "; name one as in NAME:SPLIT")
    odd: Counter[str] = Counter()
    qrels = _qrels(found[split], odd)
    queries, asked = _queries(folder, split, odd)
    document_ids, documents, own = _documents(text_files(folder, "corpus", split), queries, odd)
    kept = _checked(found[split][0], qrels, queries, document_ids, odd)
    return RetrievalSet(
        name=name,
        document_ids=document_ids,
        documents=documents,
        query_ids=tuple(kept),
        queries=tuple(asked[query] for query in kept),
        qrels=kept,
        own=tuple(query for query in kept if query in own),
        odd=tuple(f"{odd[kind]} {words[odd[kind] > 1]}" for kind, words in ODD.items() if odd[kind]),
    )


# --- where the parts are


def text_files(folder: Path, part: str, split: str = "test") -> list[Path]:
    """The files of "corpus" or "queries": this split's, or those of the only split. Raises DataError."""
    found = _splits(folder, part)
    if split not in found and len(found) != 1:
        raise _missing(folder, part, split, found)
    return found.get(split) or next(iter(found.values()))


def _splits(folder: Path, part: str) -> dict[str, list[Path]]:
    """The splits of a part, each with its files: one, or its shards in order."""
    found: dict[str, list[Path]] = {}
    for pattern in LAYOUTS[part]:
        for suffix in COMPRESSIONS:
            here: dict[str, list[Path]] = {}
            for path in sorted(folder.glob(f"{pattern}{suffix}")):
                if name := _FILE.fullmatch(path.name):
                    here.setdefault(name["split"], []).append(path)
            found = here | found
    return found


def _missing(folder: Path, part: str, split: str, found: Mapping[str, list[Path]], how: str = "") -> DataError:
    wanted = ", ".join(pattern.replace("*", split) for pattern in LAYOUTS[part])
    others = f"; the splits that it has: {', '.join(sorted(found))}{how}" if found else ""
    return DataError(f"{folder} is not such a BEIR folder: it has no {wanted} (nor .gz, .xz){others}")


# --- what they say


def part_text(record: Mapping[str, Any], part: str, path: Path) -> str:
    """What is encoded of a record of the "corpus" or the "queries": a query's title is none of its text, in BEIR.

    A text that is null is an empty one. Raises DataError where there is none at all.
    """
    left_out = {"title"} if part == "queries" else set()
    known = {key: value for key, value in record.items() if key not in left_out}
    return as_text({**known, "text": ""} if known.get("text", "") is None else known, path).text


def _entries(files: Sequence[Path], part: str, odd: Counter[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each id once, with its text and its record. Raises DataError for an id that stands there with two texts."""
    found: dict[str, int] = {}  # the texts themselves may be more than the memory holds
    for path in files:
        for number, record in enumerate(read_records(path, TEXT_COLUMNS), 1):
            where = f"{path}, entry {number}"
            name = as_id(record.get("_id", record.get("id")))
            if name is None:
                raise DataError(f'{where} has no "_id"')
            text = part_text(record, part, path)
            if checked_id(name, where) not in found:
                found[name] = hash(text)
                yield name, text, record
            elif found[name] != hash(text):
                raise DataError(f"{where}: the id {name!r} is there twice, with different texts")
            else:
                odd["twice"] += 1
    if not found:
        raise DataError(f"{files[0]} holds nothing")


def _queries(folder: Path, split: str, odd: Counter[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The queries, and the same with their instructions behind them, where the set has some, as MTEB does."""
    found: dict[str, str] = {}
    told: dict[str, Any] = {}
    for name, text, record in _entries(text_files(folder, "queries", split), "queries", odd):
        found[name], told[name] = text, record.get("instruction")
    splits = _splits(folder, "instruction")
    for path in splits.get(split) or next(iter(splits.values()), []):
        told |= {str(as_id(each.get("query-id"))): each.get("instruction") for each in read_records(path)}
    return found, {name: _followed(text, told[name], folder) for name, text in found.items()}


def _followed(text: str, instruction: Any, folder: Path) -> str:
    if not isinstance(instruction, str | None):
        raise DataError(f"{folder}: an instruction has to be a text, not {str(instruction)[:80]}")
    return checked_text(f"{text} {instruction or ''}".strip(), folder)


def _documents(
    files: Sequence[Path], queries: Mapping[str, str], odd: Counter[str]
) -> tuple[tuple[str, ...], StoredTexts, set[str]]:
    """Ids and texts of the documents, and the ids of those that are a query, too, by id and text, its title included or not."""
    ids: list[str] = []
    own: set[str] = set()

    def texts() -> Iterator[str]:
        for name, text, record in _entries(files, "corpus", odd):
            ids.append(name)
            odd["empty documents"] += not text
            if name in queries and _bare(queries[name]) in (_bare(text), _bare(str(record.get("text")))):
                own.add(name)
            yield text

    stored = StoredTexts(texts())
    return tuple(ids), stored, own


def _bare(text: str) -> str:
    """A text with every run of blanks as one."""
    return " ".join(text.split())


def _qrels(files: Sequence[Path], odd: Counter[str]) -> dict[str, dict[str, int]]:
    """Grades by query and document."""
    found: dict[str, dict[str, int]] = {}
    for each in (judgement for path in files for judgement in read_judgements(path)):
        grades = found.setdefault(each.query, {})
        if grades.setdefault(each.document, each.grade) != each.grade:
            raise DataError(
                f"{each.where}: {each.document!r} is judged twice for {each.query!r}, {grades[each.document]} and {each.grade}"
            )
        odd["judged twice"] += 1
    odd["judged twice"] -= sum(map(len, found.values()))
    if not found:
        raise DataError(f"{files[0]} judges nothing")
    return found


def _checked(
    path: Path, qrels: Mapping[str, Mapping[str, int]], queries: Mapping[str, str], documents: Sequence[str],
    odd: Counter[str],
) -> dict[str, Mapping[str, int]]:  # fmt: skip
    """The judgements of queries that are there; counts what is odd. Raises DataError where they are of another set."""
    kept = {query: grades for query, grades in qrels.items() if query in queries}
    judged = {document for grades in kept.values() for document in grades}
    odd["missing queries"] = len(qrels) - len(kept)
    odd["missing documents"] = len(judged.difference(documents))
    odd["empty queries"] = sum(not queries[query] for query in kept)
    odd["without answer"] = sum(not any(grade > 0 for grade in grades.values()) for grades in kept.values())
    if not kept:
        raise DataError(f"{path} judges {len(qrels)} queries, none of which the set has, {next(iter(qrels))!r} for one")
    if odd["missing documents"] == len(judged):
        raise DataError(f"{path} judges {len(judged)} documents, none of which the corpus has, {min(judged)!r} for one")
    return kept
