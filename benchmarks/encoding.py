"""Our two encoders beside their libraries' defaults, on the same texts, in turns; ratios of medians.

fp32: `SentenceTransformer.encode` at its defaults. GGUF, unquantized and `three_tier`:
`Llama(embedding=True)` at its defaults. Texts are SciFact's documents, cut in advance at the model's
256 tokens, for llama-cpp-python would take 512. Usage: `python benchmarks/encoding.py [BEIR_DIR]`.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from tierexport import pipeline
from tierexport.base.records import Encoded
from tierexport.datasets.beir import read_beir
from tierexport.datasets.calibration import spread
from tierexport.formats.gguf.convert import converted
from tierexport.formats.gguf.worker_client import Worker
from tierexport.model.encoder import encode, open_model
from tierexport.model.source import open_source
from tierexport.model.vector_store import VectorStore

ROUNDS = 5
TEXTS = {"fp32": 384, "gguf": 96}


def encoded(path: Path, texts: Sequence[str], limit: int, folder: Path) -> Encoded:
    with closing(Worker(path)) as worker:
        return worker.encode(texts, "", limit, folder)


def cut(texts: list[str], tokenizer: object, limit: int) -> list[str]:
    """Each text up to the last character that the model sees."""
    ends = tokenizer(texts, truncation=True, max_length=limit, return_offsets_mapping=True)["offset_mapping"]  # type: ignore[operator]
    return [text[: max(end for _, end in each)] for text, each in zip(texts, ends, strict=True)]


def their_seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def our_seconds(work: Callable[[Path], Encoded]) -> float:
    """Of encoding, as the verifier counts it: both sides have their model loaded."""
    with tempfile.TemporaryDirectory() as folder:
        return work(Path(folder)).seconds


def print_ratio(what: str, theirs: Callable[[], object], ours: Callable[[Path], Encoded]) -> None:
    """`theirs` and `ours` in turns, after a first round that isn't counted."""
    rounds = [(their_seconds(theirs), our_seconds(ours)) for _ in range(ROUNDS + 1)][1:]
    ratios = sorted(b / a for a, b in rounds)
    middle = statistics.median(ratios)
    print(
        f"{what}: {middle:.2f} of their time ({ratios[0]:.2f} to {ratios[-1]:.2f} over {ROUNDS} rounds), "
        f"{1 / middle:.2f} times as fast"
    )


def main(data: Path) -> None:
    source = open_source("all-MiniLM-L6-v2")
    model = open_model(source)
    limit = model.max_seq_length
    documents = cut(list(read_beir(data).documents), model.tokenizer, limit)
    texts, few = (spread(documents, TEXTS[each]) for each in ("fp32", "gguf"))
    print_ratio(
        f"fp32, {len(texts)} texts: ours / SentenceTransformer.encode",
        lambda: model.encode(texts),
        lambda folder: encode(model, texts, "", VectorStore(folder)),
    )

    with tempfile.TemporaryDirectory() as scratch:
        built = pipeline.build(Path("three_tier"), Path(scratch) / "out", ['formats=["gguf"]'])
        (tiers,) = built.out.glob("gguf/*.gguf")
        for name, path in (("F32 GGUF", converted(source)), ("three_tier GGUF", tiers)):
            print_gguf(f"{name}, {len(few)} texts", path, few, limit)


def print_gguf(what: str, path: Path, texts: list[str], limit: int) -> None:
    from llama_cpp import Llama

    llama = Llama(str(path), embedding=True, verbose=False)
    print_ratio(f"{what}: ours / Llama.embed", lambda: llama.embed(texts), lambda folder: encoded(path, texts, limit, folder))


if __name__ == "__main__":
    root = Path(__file__).parents[1]
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else root.parent / "shared" / "data" / "scifact")
