"""Lines and records of data files: text and JSONL, plain or compressed, and parquet. Knows no layout."""

import gzip
import json
import lzma
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TextIO

from tierexport.base.errors import DataError
from tierexport.base.libraries import need
from tierexport.base.records import Text

BUILTIN = Path(str(resources.files("tierexport.datasets"))) / "builtin"
"""The texts that come with tierexport: sentences for the screen, texts to calibrate on, and a small retrieval set."""

COMPRESSIONS = ("", ".gz", ".xz")
"""What may follow the suffix of a text file."""

TEXT_COLUMNS = ("_id", "id", "title", "text", "instruction")
"""What a record of a text is made of; `id` is how newer MTEB sets call `_id`."""

BATCH = 1024
"""Records of a parquet file that are in memory together."""

_OPENERS = {".gz": gzip.open, ".xz": lzma.open}


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file with their ends. Raises DataError when it can't be read."""
    file: TextIO
    try:
        with _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8-sig") as file:  # type: ignore[operator]
            yield from file
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from None
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{path} can't be read: {error}") from None


def read_records(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The records of a parquet or JSONL file; of parquet only these columns, where they are there and any are named.

    Raises DataError when the file can't be read, with the line in JSONL.
    """
    return _read_parquet(path, columns) if path.suffix == ".parquet" else _read_jsonl(path)


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number} is not a JSON object: {line[:60]!r}")
        yield record


def _read_parquet(path: Path, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    need("pyarrow", "parquet", f"reading {path}")
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            known = columns and [column for column in columns if column in file.schema_arrow.names]
            for batch in file.iter_batches(BATCH, columns=known):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} can't be read: {error}") from None


def as_text(record: dict[str, Any], path: Path) -> Text:
    """Title and text joined by a space, as the BEIR benchmark does; DataError where there is no text."""
    kind = record.get("kind", "passage")
    if kind not in ("query", "passage"):
        raise DataError(f'{path}: kind has to be "query" or "passage", not {kind!r}')
    if not isinstance(record.get("text"), str):
        raise DataError(f'{path}: every line needs a "text", and one has {record.get("text")!r}')
    whole = checked_text(f"{record.get('title') or ''} {record['text']}".strip(), path)
    return Text(whole, kind, str(record.get("language") or ""))


def checked_text(text: str, path: Path) -> str:
    """A text that UTF-8 can hold: JSON may have half of an emoji, which no tokenizer takes. Raises DataError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = ascii(text[max(error.start - 20, 0) : error.end + 20])
        raise DataError(f"{path} holds half of a character ({error.reason}): {around}") from None
    return text


def as_id(value: Any) -> str | None:
    """An id as text: a whole number too, also where pandas has made 12.0 of it. None for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None


def checked_id(name: str, where: str) -> str:
    """An id that trec_eval's code can take: no half of a character, no zero byte. Raises DataError."""
    if "\0" in name or any("\ud800" <= each <= "\udfff" for each in name):
        raise DataError(f"{where}: the id {name[:80]!a} holds half of a character or a zero byte")
    return name
