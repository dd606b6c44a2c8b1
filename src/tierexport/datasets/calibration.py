"""Texts to calibrate on and sentence pairs: the built-in ones, from files, from BEIR folders. Knows no model."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tierexport.base.digests import value_digest
from tierexport.base.errors import DataError
from tierexport.base.paths import expanded
from tierexport.base.records import Text, TextSet
from tierexport.datasets.beir import part_text, text_files
from tierexport.datasets.stored_texts import StoredTexts
from tierexport.datasets.textfiles import BUILTIN, TEXT_COLUMNS, as_text, checked_text, read_lines, read_records


def screen(language: str = "en") -> list[str]:
    """The sentences of the quick check at the end of a build: 143 in English, 14 in each other language with built-in texts."""
    return (BUILTIN / "screen" / f"{language}.txt").read_text("utf-8").splitlines()


def calibration_texts(name: str, count: int, languages: Sequence[str] = ("en",)) -> list[Text]:
    """At most `count` of the texts of `every_text`, at even distances, so that the choice is the same every time."""
    return spread(every_text(name, languages), count)


def every_text(name: str, languages: Sequence[str] = ("en",)) -> list[Text]:
    """The texts of "builtin" in these languages, of a .txt file (a line each), a .jsonl file or a BEIR folder.

    A .jsonl line has "text" and may have "kind" ("query" or "passage"), "title" and "language". From a BEIR folder come
    passages, every fourth text being a query. Raises DataError when there are none.
    """
    texts = [text for text in _texts(name, languages) if text.text]
    if not texts:
        raise DataError(f"{name} holds no text: calibration needs some")
    return texts


def builtin_languages() -> list[str]:
    """The codes of the languages that there are built-in texts in."""
    return sorted(path.stem for path in (BUILTIN / "calibration").glob("*.jsonl"))


def texts_in(name: str, kind: str) -> StoredTexts:
    """Every text of a .txt file (a line each), a .jsonl file, or a BEIR folder's passages or queries, by kind, in their order.

    Empty ones stay, so that row n is text n. Raises DataError when there are none.
    """
    path = expanded(name)
    if path.is_dir():
        texts = StoredTexts(_part(path, "queries" if kind == "query" else "corpus"))
    elif not path.is_file():
        raise DataError(f"there is no file or folder {name}")
    elif _is_jsonl(path):
        texts = StoredTexts(_of_kind(record, kind, path) for record in read_records(path, TEXT_COLUMNS))
    else:
        texts = StoredTexts(line.strip() for line in read_lines(path))
    if not texts:
        raise DataError(f"{name} holds no text")
    return texts


def _of_kind(record: dict[str, Any], kind: str, path: Path) -> str:
    if record.get("kind", kind) != kind:
        raise DataError(f"{path} holds a text of the kind {record['kind']!r}, where each has to be a {kind}")
    return as_text(record, path).text


NO_LINES = {".json", ".ndjson", ".csv", ".tsv", ".parquet", ".xml", ".html", ".pdf", ".zip"}
"""Suffixes of files whose lines are no texts."""


def _is_jsonl(path: Path) -> bool:
    """Whether a file has a JSON object on each line, and not a text. Raises DataError for one that by its name has neither."""
    suffixes = {suffix.lower() for suffix in path.suffixes}
    if ".jsonl" not in suffixes and suffixes & NO_LINES:
        raise DataError(f"{path} is neither text, a line each, nor .jsonl: convert it")
    return ".jsonl" in suffixes


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """`count` items at even distances, or all of them."""
    if count >= len(items):
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


def _texts(name: str, languages: Sequence[str]) -> Iterator[Text]:
    path = expanded(name)
    if name == "builtin":
        for file in (BUILTIN / "calibration" / f"{language}.jsonl" for language in languages):
            yield from (as_text(record, file) for record in read_records(file, TEXT_COLUMNS))
    elif path.is_dir():
        yield from _beir_texts(path)
    elif not path.is_file():
        raise DataError(f"there is no file or folder {path} to take texts from")
    elif _is_jsonl(path):
        yield from (as_text(record, path) for record in read_records(path, TEXT_COLUMNS))
    else:
        yield from (Text(line.strip(), "passage") for line in read_lines(path) if line.strip())


def _beir_texts(folder: Path) -> Iterator[Text]:
    passages = [Text(text, "passage") for text in _part(folder, "corpus")]
    queries = [Text(text, "query") for text in _part(folder, "queries")]
    queries = spread(queries, max(len(passages) // 3, 1))
    for index, passage in enumerate(passages):
        yield passage
        if index % 3 == 2 and index // 3 < len(queries):
            yield queries[index // 3]


def _part(folder: Path, part: str) -> Iterator[str]:
    for path in text_files(folder, part):
        yield from (part_text(record, part, path) for record in read_records(path, TEXT_COLUMNS))


def read_pairs(path: Path) -> tuple[list[str], list[str]]:
    """Queries and their passages: a .jsonl of "query" and "positive". Raises DataError naming the entry that is not one."""
    queries: list[str] = []
    passages: list[str] = []
    for number, record in enumerate(read_records(path, ("query", "positive")), 1):
        query, positive = record.get("query"), record.get("positive")
        if not isinstance(query, str) or not isinstance(positive, str):
            raise DataError(f'{path}, entry {number}: a pair has a "query" and a "positive", both texts')
        queries.append(checked_text(query, path))
        passages.append(checked_text(positive, path))
    if not queries:
        raise DataError(f"{path} holds no pairs")
    return queries, passages


def text_set(name: str, languages: Sequence[str]) -> TextSet:
    """The texts of `every_text` with their digest. Raises DataError."""
    texts = tuple(every_text(name, languages))
    return TextSet(texts, texts_digest(texts, name))


def texts_digest(texts: Sequence[Text], name: str) -> str:
    """A name for a set of texts that changes when any of them does."""
    where = name if name == "builtin" else "texts"
    return f"{where}-{value_digest([[text.kind, text.language, text.text] for text in texts])[:12]}"
