"""Retrieval sets in every layout of the hub, over real HTTP and from folders: the same set, the same refusals."""

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from loopback_hub import COMMIT, Hub, serving
from tierexport.base.errors import DataError
from tierexport.base.records import RetrievalSet
from tierexport.datasets.beir import read_beir, read_retrieval_set
from tierexport.datasets.calibration import calibration_texts
from tierexport.datasets.textfiles import BUILTIN
from tierexport.recipe.read import read_recipe

Rows = list[dict[str, Any]]
Files = dict[str, Rows | bytes]

RETRIEVAL = BUILTIN / "retrieval"
CORPUS: Rows = [json.loads(line) for line in (RETRIEVAL / "corpus.jsonl").read_text().splitlines()]
QUERIES: Rows = [json.loads(line) for line in (RETRIEVAL / "queries.jsonl").read_text().splitlines()]
QRELS: Rows = [
    {"query-id": query, "corpus-id": document, "score": int(score)}
    for query, document, score in (line.split("\t") for line in (RETRIEVAL / "qrels" / "test.tsv").read_text().splitlines()[1:])
]
SHARD = "-00000-of-00001.parquet"

ONLY_TEXT: Rows = [{"_id": row["_id"], "text": f"{row['title']} {row['text']}"} for row in CORPUS]
NO_GRADE: Rows = [{key: row[key] for key in ("query-id", "corpus-id")} for row in QRELS]
OTHER_IDS = [
    [{"id": row["_id"], **{key: row[key] for key in row if key != "_id"}} for row in part] for part in (CORPUS, QUERIES)
]

NANO: Files = {f"corpus/train{SHARD}": ONLY_TEXT, f"queries/train{SHARD}": QUERIES, f"qrels/train{SHARD}": NO_GRADE}

LAYOUTS: dict[str, tuple[str, dict[str, Files]]] = {
    "BeIR": (
        "org/small",
        {
            "org/small": {"corpus.jsonl.gz": CORPUS, "queries.jsonl.gz": QUERIES, "small.py": b"raise SystemExit"},
            "org/small-qrels": {"test.tsv": QRELS, "train.tsv": QRELS[:9]},
        },
    ),
    "BeIR, parquet": (
        "org/small",
        {
            "org/small": {f"corpus/corpus{SHARD}": CORPUS, f"queries/queries{SHARD}": QUERIES},
            "org/small-qrels": {f"data/test{SHARD}": QRELS},
        },
    ),
    "mteb": (
        "org/small@v1",
        {"org/small": {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/test.tsv": QRELS, "qrels/test.jsonl": QRELS}},
    ),
    "mteb, JSONL alone": (
        "org/small:dev",
        {"org/small": {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/test.jsonl": [], "qrels/dev.jsonl": QRELS}},
    ),
    "mteb, parquet": (
        f"org/small@{COMMIT}",
        {
            "org/small": {
                "corpus/test-00000-of-00002-0a1b.parquet": OTHER_IDS[0][:100],
                "corpus/test-00001-of-00002-2c3d.parquet": OTHER_IDS[0][100:],
                f"corpus/train{SHARD}": OTHER_IDS[0][:9],
                f"queries/test{SHARD}": OTHER_IDS[1],
                f"queries/train{SHARD}": OTHER_IDS[1][:9],
                f"data/test{SHARD}": [{**row, "score": float(row["score"])} for row in QRELS],
                f"data/train{SHARD}": QRELS[:9],
            }
        },
    ),
    "NanoBEIR": ("org/small", {"org/small": {**NANO, "model.bin": b"never fetched"}}),
    "NanoBEIR, all in one": (
        "org/small@v1:NanoSmall",
        {
            "org/small": {
                f"{part}/{split}{SHARD}": rows[:count]
                for part, rows in (("corpus", ONLY_TEXT), ("queries", QUERIES), ("qrels", NO_GRADE))
                for split, count in (("NanoSmall", None), ("NanoOther", 9))
            }
        },
    ),
}


def write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif path.suffix == ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist(content), path)
        elif path.suffix == ".tsv":
            path.write_text(
                "".join("\t".join(map(str, row)) + "\n" for row in [list(content[0]), *(r.values() for r in content)])
            )
        else:
            lines = "".join(json.dumps(row) + "\n" for row in content).encode()
            path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)


def expected(name: str, graded: bool) -> RetrievalSet:
    plain = read_beir(RETRIEVAL)
    ones = {query: dict.fromkeys(grades, 1) for query, grades in plain.qrels.items()}
    return replace(plain, name=name, documents=plain.documents[:], qrels=plain.qrels if graded else ones)


Serve = Callable[[dict[str, Files]], AbstractContextManager[Hub]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """A hub with these data sets, made in a folder of the test's own."""

    def start(repositories: dict[str, Files]) -> AbstractContextManager[Hub]:
        for name, files in repositories.items():
            write(tmp_path / name, files)
        return serving({f"datasets/{name}": tmp_path / name for name in repositories}, tmp_path / "cache")

    return start


def read_from(hub: Hub, name: str, **environment: str) -> Any:
    """`read_retrieval_set` by the real client, in a place where no folder has that name."""
    imports = "from dataclasses import replace\nfrom tierexport.datasets.beir import read_retrieval_set"
    call = "replace(found := read_retrieval_set(name), documents=found.documents[:])"
    return hub.ask(imports, call, name, **environment)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_hub_gives_the_same_set(layout: str, serve: Serve) -> None:
    name, repositories = LAYOUTS[layout]
    with serve(repositories) as hub:
        found = read_from(hub, name)
    assert found == json.loads(json.dumps(asdict(expected(name, graded="Nano" not in layout))))
    assert not any(path.endswith((".py", ".bin", ".md")) for path in hub.asked)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_is_read_the_same_way_and_wins(layout: str, tmp_path: Path) -> None:
    name, repositories = LAYOUTS[layout]
    for repository, files in repositories.items():
        write(tmp_path / repository, files)
    _, colon, split = name.partition(":")
    found = read_retrieval_set(f"{tmp_path}/org/small{colon}{split}")
    assert found == expected(f"small{colon}{split}", graded="Nano" not in layout)


def test_calibration_reads_a_folder_of_the_hub(tmp_path: Path) -> None:
    write(tmp_path / "nano", NANO)
    assert calibration_texts(str(tmp_path / "nano"), 999) == calibration_texts(str(RETRIEVAL), 999)


def test_a_folder_with_a_colon_in_its_name_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a:b", NANO)
    assert read_retrieval_set(str(tmp_path / "a:b")).name == "a:b"
    assert read_retrieval_set(f"{tmp_path}/a:b:train").name == "a:b:train"


def test_a_split_in_an_override_leaves_the_folder_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "nano", NANO)
    monkeypatch.chdir(tmp_path)
    found = read_recipe(Path("three_tier"), ['verify.data=["nano:train", "nano", "org/small:train"]']).verify.data
    assert found == (f"{tmp_path / 'nano'}:train", str(tmp_path / "nano"), "org/small:train")


# --- what is refused


def without(column: str, rows: Rows) -> Rows:
    return [{key: value for key, value in row.items() if key != column} for row in rows]


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("org/absent", {}, "the hub has no dataset org/absent"),
        ("org/small@nowhere", {}, "org/small has no revision 'nowhere'"),
        ("org/small:dev", {}, "it has no qrels/dev.tsv, qrels/dev.jsonl, "),
        ("org/small:dev", {}, "the splits that it has: train; name one as in NAME:SPLIT"),
        ("org/small", {f"qrels/valid{SHARD}": NO_GRADE}, "it has no qrels/test.tsv"),
        (
            "org/small",
            {f"qrels/train{SHARD}": None},
            "org/small has no qrels of its own, and the hub has no dataset org/small-qrels",
        ),
        ("org/small", {f"corpus/train{SHARD}": None}, "it has no corpus.jsonl, corpus/train.parquet"),
        ("org/small", {f"corpus/train{SHARD}": b"version 1"}, "can't be read: Parquet magic bytes not found"),
        ("org/small", {f"corpus/train{SHARD}": without("_id", ONLY_TEXT)}, 'entry 1 has no "_id"'),
        ("org/small", {f"queries/train{SHARD}": without("text", QUERIES)}, 'every line needs a "text", and one has None'),
        ("org/small", {f"qrels/train{SHARD}": without("corpus-id", NO_GRADE)}, "entry 1 is not a query-id, a corpus-id and"),
        ("org/small", {f"qrels/train{SHARD}": [{**QRELS[0], "score": 0.5}]}, "a whole score up to 1000: {'query-id': "),
        (
            "org/small",
            {f"corpus/train{SHARD}": [*ONLY_TEXT, {**ONLY_TEXT[3], "text": "another"}]},
            "entry 161: the id 'd004' is there twice, with different texts",
        ),
        ("org/small", {f"qrels/train{SHARD}": [*QRELS, {**QRELS[0], "score": 0}]}, "is judged twice for "),
        (
            "org/small",
            {f"qrels/train{SHARD}": [{"query-id": "q01", "corpus-id": "d999"}]},
            "judges 1 documents, none of which the corpus has, 'd999' for one",
        ),
        (
            "org/small",
            {f"qrels/train{SHARD}": [{"query-id": "q99", "corpus-id": "d001"}]},
            "judges 1 queries, none of which the set has, 'q99' for one",
        ),
    ],
)
def test_a_set_of_the_hub_that_cannot_be_used_is_refused(
    name: str, files: dict[str, Rows | bytes | None], message: str, serve: Serve
) -> None:
    changed = {path: content for path, content in {**NANO, **files}.items() if content is not None}
    with serve({"org/small": changed}) as hub:
        kind, said = read_from(hub, name)
    assert kind == "DataError"
    assert message in said


@pytest.mark.parametrize("name", ["nowhere", "/nowhere/at/all", "./a/b", "a/b/c", "org/small:a:b"])
def test_what_is_no_folder_and_no_name_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="there is no retrieval set"):
        read_retrieval_set(name)


@pytest.fixture
def nano_hub(serve: Serve) -> Iterator[Hub]:
    with serve({"org/small": NANO}) as hub:
        yield hub


def test_what_was_fetched_is_read_again_offline(nano_hub: Hub) -> None:
    fetched = read_from(nano_hub, "org/small")
    asked = len(nano_hub.asked)
    assert read_from(nano_hub, "org/small", HF_HUB_OFFLINE="1") == fetched
    assert len(nano_hub.asked) == asked


def test_a_hub_out_of_reach_is_a_lack_of_this_machine(nano_hub: Hub) -> None:
    offline = read_from(nano_hub, "org/small", HF_HUB_OFFLINE="1")
    nano_hub.shutdown()
    nano_hub.server_close()
    for kind, said in (offline, read_from(nano_hub, "org/small")):
        assert kind == "MachineError"
        assert "can't fetch org/small from the hub" in said
