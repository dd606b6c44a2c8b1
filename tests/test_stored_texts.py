"""A corpus may be larger than memory: its texts lie on the disk, whatever kind of file they came from."""

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import run
from tierexport.datasets.beir import read_beir
from tierexport.datasets.calibration import texts_in
from tierexport.datasets.stored_texts import StoredTexts
from tierexport.model.reference import Reference

DOCUMENTS, CHARACTERS = 6_000, 5_000


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=12), st.data())
def test_it_is_the_sequence_that_it_was_made_of(texts: list[str], data: st.DataObject) -> None:
    stored = StoredTexts(iter(texts))
    assert stored == texts
    assert list(stored) == texts
    which = data.draw(st.slices(len(texts)))
    assert stored[which] == tuple(texts[which])
    rows = np.array(data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts))), bool)
    assert stored.chosen(rows) == [text for text, taken in zip(texts, rows, strict=True) if taken]
    assert stored != [*texts, "another"]


def text_of(number: int) -> str:
    return f"passage {number} é" + "x" * CHARACTERS


def as_jsonl(path: Path, records: Sequence[dict[str, str]]) -> None:
    path.with_suffix(".jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def as_parquet(path: Path, records: Sequence[dict[str, str]]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(records)), path.with_suffix(".parquet"), row_group_size=500)


LAYOUTS = {"jsonl": (as_jsonl, "{}"), "parquet": (as_parquet, "{0}/{0}-00000-of-00001")}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_corpus_is_never_whole_in_memory(kind: str, tmp_path: Path) -> None:
    """30 MB of it; what may grow with it are ids."""
    write: Callable[[Path, Sequence[dict[str, str]]], None]
    write, name = LAYOUTS[kind]
    write(tmp_path / name.format("corpus"), [{"_id": f"d{row}", "text": text_of(row)} for row in range(DOCUMENTS)])
    write(tmp_path / name.format("queries"), [{"_id": "q", "text": "a question"}])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td7\t1\n")
    tracemalloc.start()
    documents, texts = read_beir(tmp_path).documents, texts_in(str(tmp_path), "passage")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.5 * DOCUMENTS * CHARACTERS
    assert len(documents) == len(texts) == DOCUMENTS
    assert documents[7] == texts[7] == text_of(7)
    assert documents[-1] == text_of(DOCUMENTS - 1)


def test_an_encoding_that_was_killed_goes_on(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL once some shards are encoded: the next run takes them as they are, and ends as one left alone."""
    texts, codec, out = tmp_path / "texts.txt", tmp_path / "codec.safetensors", tmp_path / "vectors.safetensors"
    texts.write_text("".join(f"text {number} about rivers and what lies {number} miles beyond\n" for number in range(4000)))
    assert run("vectors", "fit", tiny_model, "--level", "int2", "--count", "50", "--out", codec).exit_code == 0
    command = ("vectors", "encode", tiny_model, texts, "--codec", codec, "--out", out)
    assert run(*command).exit_code == 0
    alone = out.read_bytes()
    monkeypatch.setenv("TIEREXPORT_CACHE", str(tmp_path / "cache"))
    records = tmp_path / "cache" / "vectors" / ".stages"
    process = subprocess.Popen([sys.executable, "-m", "tierexport", *map(str, command)], start_new_session=True)
    while len(list(records.glob("*.json"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = len(list(records.glob("*.json")))
    made: list[int] = []
    encode = Reference.made

    def counted(self: Reference, texts: Sequence[str], *to: Any) -> Any:
        made.append(len(texts))
        return encode(self, texts, *to)

    monkeypatch.setattr(Reference, "made", counted)
    assert run(*command).exit_code == 0
    assert out.read_bytes() == alone
    assert made == ([] if done == 9 else [512] * (8 - done) + [4000 - 7 * 512])
