"""Our two encoders beside their libraries' defaults, on the same texts, in turns; ratios of medians.

fp32: `SentenceTransformer.encode` at its defaults. GGUF (F32, so that only the runtime differs):
`Llama(embedding=True)` at its defaults. Texts are SciFact's documents, cut in advance at the model's
256 tokens, for llama-cpp-python would take 512. Usage: `python benchmarks/encoding.py [BEIR_DIR]`.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tierexport.beir import read_beir
from tierexport.datasets import spread
from tierexport.encode import VectorStore, encode, open_model
from tierexport.formats.gguf import converted
from tierexport.source import open_source
from tierexport.verify.readers import read_gguf

ROUNDS = 5
TEXTS = {"fp32": 384, "gguf": 64}


def cut(texts: list[str], tokenizer: object, limit: int) -> list[str]:
    """Each text up to the last character that the model sees."""
    ends = tokenizer(texts, truncation=True, max_length=limit, return_offsets_mapping=True)["offset_mapping"]  # type: ignore[operator]
    return [text[: max(end for _, end in each)] for text, each in zip(texts, ends, strict=True)]


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def print_ratio(what: str, theirs: Callable[[], object], ours: Callable[[], object]) -> None:
    """`theirs` and `ours` in turns, after a first round that isn't counted."""
    rounds = [(seconds(theirs), seconds(ours)) for _ in range(ROUNDS + 1)][1:]
    ratios = sorted(b / a for a, b in rounds)
    print(f"{what}: {statistics.median(ratios):.2f} of their time ({ratios[0]:.2f} to {ratios[-1]:.2f} over {ROUNDS} rounds)")


def main(data: Path) -> None:
    source = open_source("all-MiniLM-L6-v2")
    model = open_model(source)
    documents = cut(list(read_beir(data).documents), model.tokenizer, model.max_seq_length)

    def ours_fp32() -> None:
        with tempfile.TemporaryDirectory() as folder:
            encode(model, texts, "", VectorStore(Path(folder)))

    texts = spread(documents, TEXTS["fp32"])
    print_ratio(f"fp32, {len(texts)} texts: ours / SentenceTransformer.encode", lambda: model.encode(texts), ours_fp32)

    from llama_cpp import Llama

    path = converted(source)
    few = spread(documents, TEXTS["gguf"])
    llama = Llama(str(path), embedding=True, verbose=False)

    def ours_gguf() -> None:
        with tempfile.TemporaryDirectory() as folder:
            read_gguf(path, few, model.max_seq_length, Path(folder))

    print_ratio(
        f"GGUF, {len(few)} texts, our start of a process included: ours / Llama.embed", lambda: llama.embed(few), ours_gguf
    )


if __name__ == "__main__":
    root = Path(__file__).parents[1]
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else root.parent / "shared" / "data" / "scifact")
