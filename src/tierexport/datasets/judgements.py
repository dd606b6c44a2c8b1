"""Qrels as they are found: BEIR's TSV, TREC's four columns, JSONL and parquet, under headers of many names."""

import csv
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tierexport.base.errors import DataError
from tierexport.datasets.textfiles import as_id, checked_id, read_lines, read_records

MOST_GRADE = 1000
"""The highest grade that is believed: trec_eval's code takes memory in proportion to it."""

NAMES = {
    "query": ("query-id", {"query", "queryid", "qid", "q", "topic", "topicid", "question"}),
    "document": (
        "corpus-id",
        {"corpus", "corpusid", "doc", "docid", "docno", "document", "documentid", "passage", "passageid", "pid", "did", "item"},
    ),
    "grade": ("score", {"score", "rel", "relevance", "grade", "label", "rating", "judgment", "judgement", "gain"}),
}
"""What a column is called in BEIR, and the words by which other names say the same."""

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_GRADE = re.compile(r"([+-]?[0-9]{1,9})(\.0*)?")
_TREC = (0, 2, 3)
_BEIR = (0, 1, 2)


@dataclass(frozen=True)
class Judgement:
    """One line of a qrels file, and where it stands."""

    where: str
    query: str
    document: str
    grade: int


def read_judgements(path: Path) -> Iterator[Judgement]:
    """Every judgement of a file, in its order. Raises DataError naming the line or entry that is none."""
    return _of_lines(path) if ".tsv" in path.suffixes else _of_records(path)


def _of_records(path: Path) -> Iterator[Judgement]:
    for number, record in enumerate(read_records(path), 1):
        columns = _columns([*record])
        query, document = (as_id(record.get(columns.get(each, ""))) for each in ("query", "document"))
        grade = _grade(record[columns["grade"]]) if "grade" in columns else 1
        if query is None or document is None or grade is None:
            raise DataError(
                f"{path}, entry {number} is not a query-id, a corpus-id and a whole score up to {MOST_GRADE}: "
                f"{str(record)[:80]}"
            )
        where = f"{path}, entry {number}"
        yield Judgement(where, checked_id(query, where), checked_id(document, where), grade)


def _of_lines(path: Path) -> Iterator[Judgement]:
    """The columns are found by the header's names; without a header, or of other names, by BEIR's or TREC's order."""
    places: Sequence[int] | None = None
    for number, fields in _rows(path):
        if places is None and _is_header(fields):
            named = _columns(fields)
            places = [fields.index(name) for name in named.values()] if len(named) == len(NAMES) else _BEIR
            continue
        places = places or _order_of(fields)
        chosen = [fields[place] for place in places if place < len(fields)]
        grade = _grade(chosen[-1]) if len(chosen) == len(places) else None
        if grade is None or not all(chosen[:2]) or any("\n" in each for each in chosen):
            raise DataError(
                f"{path}, line {number} is not QUERY, DOCUMENT and a whole grade up to {MOST_GRADE}, with tabs between: "
                f"{' '.join(fields)[:80]!r}"
            )
        where = f"{path}, line {number}"
        yield Judgement(where, checked_id(chosen[0], where), checked_id(chosen[1], where), grade)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The fields of every line that has some, with its number: between tabs, quoted or not, or blanks if the first has no
    tab.
    """
    lines = read_lines(path)
    before = []
    for line in lines:
        before.append(line)
        if line.strip():
            break
    every = itertools.chain(before, lines)
    if "\t" not in "".join(before[-1:]):
        yield from ((number, line.split()) for number, line in enumerate(every, 1) if line.strip())
        return
    reader = csv.reader(every, delimiter="\t")
    try:
        yield from ((reader.line_num, fields) for fields in reader if any(map(str.strip, fields)))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} can't be read: {error}") from None


def _columns(names: Sequence[str]) -> Mapping[str, str]:
    """Which of the columns holds the query, the document and the grade, as far as their names tell."""
    found: dict[str, str] = {}
    for kind, (usual, words) in NAMES.items():
        named = [name for name in names if words & _words(name)]
        if named:
            found[kind] = min(named, key=lambda name: (name != usual, "id" not in name.lower()))
    return found


def _words(name: str) -> set[str]:
    """The words of a column's name; none of what holds a digit, as ids and grades do."""
    return set() if re.search(r"\d", name) else {word.lower() for word in _WORDS.findall(name)}


def _is_header(fields: Sequence[str]) -> bool:
    """Whether a first line names columns, two of them at least; anything else is a judgement, or an error."""
    return len(_columns(fields)) > 1 and not any(_grade(field) is not None for field in fields)


def _order_of(fields: Sequence[str]) -> Sequence[int]:
    """TREC's "query 0 document grade", or BEIR's "query document grade", which other columns may follow."""
    trec = len(fields) == 4 and _grade(fields[3]) is not None and (fields[1] in ("0", "Q0") or _grade(fields[2]) is None)
    return _TREC if trec else _BEIR


def _grade(value: Any) -> int | None:
    """A whole grade within reason, also written "1.0" or "+1"; None for anything else."""
    if isinstance(value, str):
        match = _GRADE.fullmatch(value.strip())
        value = int(match[1]) if match else None
    if not isinstance(value, int | float) or value != value // 1 or abs(value) > MOST_GRADE:
        return None
    return int(value)
