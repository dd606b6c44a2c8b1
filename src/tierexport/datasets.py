"""Texts from files: the built-in ones, plain or JSONL files, and BEIR folders. Knows no model."""

import gzip
import json
import lzma
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, TextIO

from tierexport.errors import DataError
from tierexport.records import RetrievalSet, Text

BUILTIN = Path(str(resources.files("tierexport"))) / "data"
_OPENERS = {".gz": gzip.open, ".xz": lzma.open}


def screen() -> list[str]:
    """The 143 sentences that the quick check at the end of a build encodes."""
    return (BUILTIN / "screen.txt").read_text("utf-8").splitlines()


def calibration_texts(name: str, count: int, folder: Path) -> list[Text]:
    """At most `count` texts: "builtin", a .txt file (a line each), a .jsonl file or a BEIR folder.

    A .jsonl line has "text" and may have "kind" ("query" or "passage") and "title". From a BEIR
    folder come passages, every fourth text being a query. Texts are taken at even distances, so
    the choice is the same every time. Raises DataError when there are none.
    """
    texts = [text for text in _texts(name, folder) if text.text]
    if not texts:
        raise DataError(f"calibration.texts = {name!r} holds no text: calibration needs some")
    return spread(texts, count)


def spread(items: list[Any], count: int) -> list[Any]:
    """`count` items at even distances, or all of them."""
    if count >= len(items):
        return items
    return [items[index * len(items) // count] for index in range(count)]


def _texts(name: str, folder: Path) -> Iterator[Text]:
    path = BUILTIN / "calibration.jsonl" if name == "builtin" else folder / Path(name).expanduser()
    if path.is_dir():
        yield from _beir_texts(path)
    elif not path.is_file():
        raise DataError(f"calibration.texts = {name!r}: there is no such file or folder ({path})")
    elif ".jsonl" in [suffix.lower() for suffix in path.suffixes]:
        yield from (_text(record, path) for record in read_jsonl(path))
    else:
        yield from (Text(line.strip(), "passage") for line in _lines(path) if line.strip())


def _beir_texts(folder: Path) -> Iterator[Text]:
    passages = [_text(record, folder) for record in read_jsonl(_beir_file(folder, "corpus.jsonl"))]
    found = (_text(record, folder).text for record in read_jsonl(_beir_file(folder, "queries.jsonl")))
    queries = [Text(text, "query") for text in found]
    queries = spread(queries, max(len(passages) // 3, 1))
    for index, passage in enumerate(passages):
        yield passage
        if index % 3 == 2 and index // 3 < len(queries):
            yield queries[index // 3]


def _beir_file(folder: Path, name: str) -> Path:
    for suffix in ("", ".gz", ".xz"):
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    raise DataError(f"{folder} is not such a BEIR folder: it has no {name} (nor .gz, .xz)")


def read_beir(folder: Path, split: str = "test") -> RetrievalSet:
    """A BEIR folder: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, plain or compressed.

    Title and text are joined by a space, as the BEIR benchmark does; queries without a judgement are
    left out. Raises DataError for a folder that contradicts itself.
    """
    documents = _by_id(_beir_file(folder, "corpus.jsonl"))
    queries = _by_id(_beir_file(folder, "queries.jsonl"))
    qrels = _qrels(_beir_file(folder, f"qrels/{split}.tsv"), documents, queries)
    return RetrievalSet(
        name=folder.name,
        document_ids=tuple(documents),
        documents=tuple(documents.values()),
        query_ids=tuple(qrels),
        queries=tuple(queries[query] for query in qrels),
        qrels=qrels,
    )


def _by_id(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, record in enumerate(read_jsonl(path), 1):
        if "_id" not in record:
            raise DataError(f'{path}, entry {number} has no "_id"')
        name, text = str(record["_id"]), _text(record, path).text
        if name in found:
            raise DataError(f"{path}, entry {number}: the id {name!r} is there twice")
        if not text:
            raise DataError(f"{path}, entry {number}: {name!r} has no text")
        found[name] = text
    if not found:
        raise DataError(f"{path} holds nothing")
    return found


def _qrels(path: Path, documents: dict[str, str], queries: dict[str, str]) -> dict[str, dict[str, int]]:
    """Grades by query and document; the first line may be a header."""
    found: dict[str, dict[str, int]] = {}
    for number, line in enumerate(_lines(path), 1):
        fields = line.rstrip("\r\n").split("\t")
        if not line.strip() or (number == 1 and not fields[-1].lstrip("-").isdecimal()):
            continue
        if len(fields) != 3 or not fields[2].lstrip("-").isdecimal():
            raise DataError(f"{path}, line {number} is not QUERY, DOCUMENT and a whole grade, with tabs between: {line[:80]!r}")
        query, document, grade = fields
        for name, kind, known in ((query, "query", queries), (document, "document", documents)):
            if name not in known:
                raise DataError(f"{path}, line {number} names the {kind} {name!r}, which the set lacks")
        if document in found.setdefault(query, {}):
            raise DataError(f"{path}, line {number}: {document!r} is judged twice for {query!r}")
        found[query][document] = int(grade)
    if not found:
        raise DataError(f"{path} judges nothing")
    return found


def read_sts(path: Path) -> list[tuple[float, str, str]]:
    """Sentence pairs with human scores: a TSV of score, sentence, sentence, under a header or not.

    Raises DataError naming the line that is not one.
    """
    pairs = []
    for number, line in enumerate(_lines(path), 1):
        fields = line.rstrip("\r\n").split("\t")
        try:
            score, one, other = float(fields[0]), *fields[1:3]
        except ValueError:
            if number == 1:
                continue
            raise DataError(
                f"{path}, line {number} is not SCORE, SENTENCE, SENTENCE with tabs between: {line[:80]!r}"
            ) from None
        pairs.append((score, one, other))
    if len(pairs) < 3:
        raise DataError(f"{path} holds {len(pairs)} sentence pairs: a rank correlation needs some")
    return pairs


def _text(record: dict[str, Any], path: Path) -> Text:
    kind = record.get("kind", "passage")
    if kind not in ("query", "passage"):
        raise DataError(f'{path}: kind has to be "query" or "passage", not {kind!r}')
    if not isinstance(record.get("text"), str):
        raise DataError(f'{path}: every line needs a "text", and one has {record.get("text")!r}')
    return Text(f"{record.get('title') or ''} {record['text']}".strip(), kind)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, plain or compressed. Raises DataError with the line."""
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number} is not a JSON object: {line[:60]!r}")
        yield record


def _lines(path: Path) -> Iterator[str]:
    file: TextIO
    try:
        with _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:  # type: ignore[operator]
            yield from file
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from None
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{path} can't be read: {error}") from None
