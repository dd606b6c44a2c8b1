"""Retrieval sets: from what the user names to a checked set, whichever of BEIR's layouts it has.

A set is a folder or `ORG/NAME[@REVISION]` on a hub. Its parts lie as the BEIR benchmark
distributes them, or as repositories of the hub do:

    BeIR/scifact               corpus.jsonl.gz, queries.jsonl.gz, and in BeIR/scifact-qrels test.tsv
    BeIR/nfcorpus              corpus/corpus-*.parquet, queries/queries-*.parquet, qrels as above
    mteb/scifact               corpus.jsonl, queries.jsonl, qrels/test.tsv or .jsonl
    newer sets of mteb         corpus/test-*.parquet, queries/test-*.parquet, data/test-*.parquet
    zeta-alpha-ai/NanoSciFact  corpus/train-*.parquet, queries/train-*.parquet, qrels/train-*.parquet
    sentence-transformers/NanoBEIR-en  the same, with a split per set: corpus/NanoSciFact-*.parquet
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tierexport.errors import DataError
from tierexport.hub import fetch, is_hub_id
from tierexport.records import RetrievalSet
from tierexport.shipped import BUILTIN
from tierexport.textfiles import COMPRESSIONS, TEXT_COLUMNS, as_text, read_lines, read_records
from tierexport.workdir import expanded

QRELS = ("qrels/*.tsv", "qrels/*.jsonl", "qrels/*.parquet", "data/*.parquet", "default/*.parquet")
LAYOUTS = {
    "corpus": ("corpus.jsonl", "corpus/*.parquet"),
    "queries": ("queries.jsonl", "queries/*.parquet"),
    "qrels": QRELS,
    "sister": ("*.tsv", *QRELS),
}
"""Where each part may lie, `*` being the split; the first that has it counts. "sister": qrels in NAME-qrels."""

JUDGEMENT_COLUMNS = ("query-id", "corpus-id", "score")

MOST_GRADE = 1000
"""The highest grade that is believed: trec_eval's code takes memory in proportion to it."""

_GRADE = re.compile(r"-?[0-9]{1,9}")

_FILE = re.compile(r"(?P<split>.+?)(-\d+-of-\d+(-[0-9a-f]+)?)?\.(jsonl|tsv|parquet)(\.gz|\.xz)?")
"""A file's name: its split and, for parquet, its shard."""


def split_off(name: str, base: Path) -> tuple[str, str | None]:
    """A set's name without its `:SPLIT`, and the split; what has a colon in its name stays whole."""
    head, colon, split = name.rpartition(":")
    return (head, split) if colon and not (base / expanded(name)).exists() else (name, None)


def read_retrieval_set(name: str, base: Path) -> RetrievalSet:
    """The set that FOLDER[:SPLIT] (relative to `base`), ORG/NAME[@REVISION][:SPLIT] or "builtin" names; of a folder and
    a repository the folder wins.

    Without a split it is the test split, or the only one. The revision is that of the texts: qrels in
    a repository of their own are taken at its newest. Raises DataError for a set that is not there or
    contradicts itself, MachineError when the hub can't be reached.
    """
    if name == "builtin":
        return replace(read_beir(BUILTIN / "retrieval"), name=name)
    place, split = split_off(name, base)
    folder = base / expanded(place)
    if folder.is_dir():
        return read_beir(Path(os.path.abspath(folder)), split)  # noqa: PTH100  # a link keeps its name
    if not is_hub_id(place):
        raise DataError(
            f"there is no retrieval set {name!r}: it is no folder, no ORG/NAME[@REVISION][:SPLIT] of a hub, and not builtin"
        )
    repository, _, revision = place.partition("@")
    folder = _fetch(repository, revision or None, "corpus", "queries", "qrels")
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

    Title and text are joined by a space, as the BEIR benchmark does; queries without a judgement are
    left out; a judgement without a score is a 1. Raises DataError for a folder that contradicts itself.
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
    documents, queries = (_by_id(text_files(folder, texts, split)) for texts in ("corpus", "queries"))
    qrels = _qrels(found[split], documents, queries)
    return RetrievalSet(
        name=name,
        document_ids=tuple(documents),
        documents=tuple(documents.values()),
        query_ids=tuple(qrels),
        queries=tuple(queries[query] for query in qrels),
        qrels=qrels,
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


def _by_id(files: Sequence[Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in files:
        for number, record in enumerate(read_records(path, TEXT_COLUMNS), 1):
            name = record.get("_id", record.get("id"))
            if name is None:
                raise DataError(f'{path}, entry {number} has no "_id"')
            name, text = str(name), as_text(record, path).text
            if name in found:
                raise DataError(f"{path}, entry {number}: the id {name!r} is there twice")
            if not text:
                raise DataError(f"{path}, entry {number}: {name!r} has no text")
            found[name] = text
    if not found:
        raise DataError(f"{files[0]} holds nothing")
    return found


def _qrels(files: Sequence[Path], documents: Mapping[str, str], queries: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Grades by query and document."""
    found: dict[str, dict[str, int]] = {}
    for where, query, document, grade in (each for path in files for each in _judgements(path)):
        for name, kind, known in ((query, "query", queries), (document, "document", documents)):
            if name not in known:
                raise DataError(f"{where} names the {kind} {name!r}, which the set lacks")
        if document in found.setdefault(query, {}):
            raise DataError(f"{where}: {document!r} is judged twice for {query!r}")
        found[query][document] = grade
    if not found:
        raise DataError(f"{files[0]} judges nothing")
    return found


def _judgements(path: Path) -> Iterator[tuple[str, str, str, int]]:
    """Each judgement as (where it stands, query, document, grade)."""
    if ".tsv" in path.suffixes:
        yield from _judged_lines(path)
        return
    for number, record in enumerate(read_records(path, JUDGEMENT_COLUMNS), 1):
        query, document, grade = record.get("query-id"), record.get("corpus-id"), record.get("score", 1)
        named = all(isinstance(name, str | int) for name in (query, document))
        if not named or not isinstance(grade, int | float) or grade != grade // 1 or abs(grade) > MOST_GRADE:
            raise DataError(
                f"{path}, entry {number} is not a query-id, a corpus-id and a whole score up to {MOST_GRADE}: "
                f"{str(record)[:80]}"
            )
        yield f"{path}, entry {number}", str(query), str(document), int(grade)


def _judged_lines(path: Path) -> Iterator[tuple[str, str, str, int]]:
    """The same of a TSV, whose first line may be a header."""
    for number, line in enumerate(read_lines(path), 1):
        fields = line.rstrip("\r\n").split("\t")
        if not line.strip() or (number == 1 and not fields[-1].lstrip("-").isdecimal()):
            continue
        if len(fields) != 3 or not _GRADE.fullmatch(fields[2]) or abs(int(fields[2])) > MOST_GRADE:
            raise DataError(
                f"{path}, line {number} is not QUERY, DOCUMENT and a whole grade up to {MOST_GRADE}, with tabs between: "
                f"{line[:80]!r}"
            )
        yield f"{path}, line {number}", fields[0], fields[1], int(fields[2])
