"""Texts from files: the built-in ones, plain or JSONL files, and BEIR folders. Knows no model."""

import gzip
import json
import lzma
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, TextIO

from tierexport.errors import CalibrationError
from tierexport.records import Text

BUILTIN = Path(str(resources.files("tierexport"))) / "data"
_OPENERS = {".gz": gzip.open, ".xz": lzma.open}


def screen() -> list[str]:
    """The 143 sentences that the quick check at the end of a build encodes."""
    return (BUILTIN / "screen.txt").read_text("utf-8").splitlines()


def calibration_texts(name: str, count: int, folder: Path) -> list[Text]:
    """At most `count` texts: "builtin", a .txt file (a line each), a .jsonl file or a BEIR folder.

    A .jsonl line has "text" and may have "kind" ("query" or "passage") and "title". From a BEIR
    folder come passages, every fourth text being a query. Texts are taken at even distances, so
    the choice is the same every time. Raises CalibrationError when there are none.
    """
    texts = list(_texts(name, folder))
    if not texts:
        raise CalibrationError(f"calibration.texts = {name!r} holds no text: calibration needs some")
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
        raise CalibrationError(f"calibration.texts = {name!r}: there is no such file or folder ({path})")
    elif ".jsonl" in path.suffixes:
        yield from (_text(record, path) for record in read_jsonl(path))
    else:
        yield from (Text(line.strip(), "passage") for line in _lines(path) if line.strip())


def _beir_texts(folder: Path) -> Iterator[Text]:
    passages = [_text(record, folder) for record in read_jsonl(_beir_file(folder, "corpus.jsonl"))]
    queries = [Text(str(record["text"]), "query") for record in read_jsonl(_beir_file(folder, "queries.jsonl"))]
    queries = spread(queries, max(len(passages) // 3, 1))
    for index, passage in enumerate(passages):
        yield passage
        if index % 3 == 2 and index // 3 < len(queries):
            yield queries[index // 3]


def _beir_file(folder: Path, name: str) -> Path:
    for suffix in ("", ".gz", ".xz"):
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    raise CalibrationError(f"{folder} is not a BEIR folder: it has no {name} (nor .gz, .xz)")


def _text(record: dict[str, Any], path: Path) -> Text:
    kind = record.get("kind", "passage")
    if kind not in ("query", "passage"):
        raise CalibrationError(f'{path}: kind has to be "query" or "passage", not {kind!r}')
    if not isinstance(record.get("text"), str):
        raise CalibrationError(f'{path}: every line needs a "text", and one has {record.get("text")!r}')
    return Text(f"{record.get('title') or ''} {record['text']}".strip(), kind)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, plain or compressed. Raises CalibrationError with the line."""
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise CalibrationError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise CalibrationError(f"{path}, line {number} is not a JSON object: {line[:60]!r}")
        yield record


def _lines(path: Path) -> Iterator[str]:
    file: TextIO
    try:
        with _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:  # type: ignore[operator]
            yield from file
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path} is not UTF-8: {error}") from None
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise CalibrationError(f"{path} can't be read: {error}") from None
