"""What calibration texts are worth: MiniLM rounded on several sets of them, judged on texts that none of them holds.

Every layer matrix at IQ4_NL, the token table at Q8_0. What is printed is the mean 1 - cosine to fp32 of vectors that
llama.cpp makes, as a share of the same for a file that is rounded to nearest with importance from the built-in texts,
as llama-quantize does it, with paired 95 % intervals. Usage: `python benchmarks/calibration.py DATA`, a folder with
BEIR's `scifact`, `squad-dev` in the same layout, and `sts/stsb-{train,test}.tsv`.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from scipy import stats

from tierexport import pipeline
from tierexport.base.records import Encoded
from tierexport.datasets.beir import read_beir
from tierexport.datasets.calibration import spread
from tierexport.datasets.sts import read_sts
from tierexport.formats.export import export
from tierexport.formats.gguf.format import Gguf
from tierexport.formats.gguf.worker_client import Worker
from tierexport.formats.job import Job
from tierexport.metrics.similarity import cosines
from tierexport.model.encoder import encode, open_model
from tierexport.model.source import open_source
from tierexport.model.vector_store import VectorStore

MODEL = "all-MiniLM-L6-v2"
JUDGED = 300
CALIBRATED = 400
RECIPE = f"""
name = "trial"
model = "{MODEL}"
formats = ["gguf"]
[tiers.all]
bits = 4
gguf = "IQ4_NL"
[tiers.table]
bits = 8
[[rules]]
tier = "all"
roles = ["attention", "ffn"]
[[rules]]
tier = "table"
roles = ["embeddings"]
"""
TRIALS = (
    ("builtin", 24_576, "nearest"),
    ("builtin", 2_048, "gptq"),
    ("builtin", 8_192, "gptq"),
    ("builtin", 24_576, "gptq"),
    ("builtin", 98_304, "gptq"),
    ("scifact", 24_576, "gptq"),
    ("squad", 24_576, "gptq"),
    ("sts", 24_576, "gptq"),
    ("builtin", 24_576, "distill"),
    ("builtin", 98_304, "distill"),
    ("scifact", 24_576, "distill"),
)


def encoded(path: Path, texts: Sequence[str], limit: int, folder: Path) -> Encoded:
    with closing(Worker(path)) as worker:
        return worker.encode(texts, "", limit, folder)


def main(data: Path) -> None:
    sets = {
        "scifact": read_beir(data / "scifact").documents,
        "squad": read_beir(data / "squad-dev").documents,
        "sts": read_sts(data / "sts/stsb-test.tsv").sentences,
    }
    judged = {name: spread(list(texts[::2]), JUDGED) for name, texts in sets.items()}
    others = {**sets, "sts": read_sts(data / "sts/stsb-train.tsv").sentences}
    print(f"{'texts':8} {'tokens':>6} {'rounding':8}  " + "  ".join(f"{name:^26}" for name in judged))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in sets:
            unseen = [text for text in others[name][1::2] if text not in set(judged[name])]
            lines = [json.dumps({"text": text}) + "\n" for text in spread(unseen, CALIBRATED)]
            (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")
        first: list[np.ndarray] = []
        for number, trial in enumerate(TRIALS):
            losses = judge(made(folder, number, *trial), list(judged.values()), folder / f"vectors-{number}")
            first = first or losses
            columns = "  ".join(ratio(*pair) for pair in zip(losses, first, strict=True))
            print(f"{trial[0]:8} {trial[1]:6} {trial[2]:8}  {columns}", flush=True)


def made(folder: Path, number: int, texts: str, tokens: int, rounding: str) -> Path:
    (folder / "recipe.toml").write_text(RECIPE)
    named = texts if texts == "builtin" else f"{texts}.jsonl"
    keys = [f'rounding="{rounding}"', f'calibration.texts="{named}"', f"calibration.tokens={tokens}"]
    plan = pipeline.plan(folder / "recipe.toml", keys)
    job = Job(plan.formats[0], plan, Gguf().calibrated(plan.formats[0], plan))
    return export(Gguf(), job, folder / f"made-{number}").path


def judge(path: Path, sets: Sequence[Sequence[str]], folder: Path) -> "list[np.ndarray]":
    """1 - cosine to fp32 of each text of each set."""
    source = open_source(MODEL)
    found = []
    for number, texts in enumerate(sets):
        theirs, ours = folder / f"fp32-{number}", folder / f"gguf-{number}"
        theirs.mkdir(parents=True)
        ours.mkdir()
        reference = encode(open_model(source), texts, "", VectorStore(theirs))
        vectors = encoded(path, texts, source.max_tokens or 512, ours).vectors
        found.append(1 - cosines(np.asarray(reference.vectors), np.asarray(vectors)))
    return found


def ratio(losses: np.ndarray, first: np.ndarray) -> str:
    """The mean, and its share of the first trial's with a paired interval."""

    def share(one: np.ndarray, other: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(one.mean(axis) / other.mean(axis))

    found = stats.bootstrap(
        (losses, first), share, paired=True, vectorized=True, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return f"{losses.mean():.5f} {share(losses, first):.3f} ({found.low:.3f} to {found.high:.3f})"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
