"""What encodes how fast beside sentence-transformers in fp32, in turns in one run, and how far its vectors are off.

Engines: sentence-transformers in fp32 and, where the CPU multiplies it, in bf16; our artifacts of the recipes int8, four_bit
and fast; sentence-transformers' ONNX and OpenVINO backends in fp32 and int8, each in a process of its own. Texts are windows
of the built-in calibration texts, of exactly so many tokens; 1−cos is that of the built-in screen's sentences. Each round has
every engine once, in rotated order; a figure is the ratio of medians, with the least and the greatest ratio of a round.

Usage: `python benchmarks/engines.py [--threads N] [--picture FILE.svg] [--python PATH]`. PATH is the python of an environment
with engines.txt installed; without it one is made in the cache, of 1.5 GB, so `make bench` leaves this out. Our artifacts are
built there, too, unless they are there: remove the folder `engines` in it where they have to be built again.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tierexport
from tierexport import pipeline
from tierexport.artifact.manifest import MANIFEST
from tierexport.base.digests import file_digest
from tierexport.base.libraries import import_sentence_transformers
from tierexport.base.paths import cache_dir
from tierexport.base.records import Floats, Source
from tierexport.datasets.calibration import calibration_texts, screen
from tierexport.formats import format_named
from tierexport.formats.gguf.worker_client import Worker
from tierexport.formats.torchao.load import compile_transformer
from tierexport.metrics.similarity import cosines
from tierexport.model.source import open_source
from tierexport.report.drawing import GRID, figure, written
from tierexport.report.labels import name_points

MODEL = "all-MiniLM-L6-v2"
TEXTS = {16: 128, 64: 32, 256: 32}
"""How many texts of how many tokens."""

ROUNDS = 5
RECIPES = {"int8": ("gguf", "torchao"), "four_bit": ("gguf",), "fast": ("torchao",)}
PEERS = ("ONNX fp32", "ONNX int8", "OpenVINO fp32", "OpenVINO int8")
HERE = Path(__file__).parent

LEAST_LOSS = 1e-7
"""Below it a cosine says no more than float32's rounding does: where the picture puts what loses less."""

COLOURS = {
    "GGUF": format_named("gguf").colour,
    "torchao": format_named("torchao").colour,
    "ONNX": "#8a63d2",
    "OpenVINO": "#2e9e5b",
    "torch": "0.4",
}
"""By the first word of an engine's name."""


@dataclass(frozen=True)
class Engine:
    """`encode` gives seconds and vectors, float32 (texts, dimensions); `bytes` are those of the files that hold weights."""

    name: str
    bytes: int
    encode: Callable[[Sequence[str]], tuple[float, Floats]]


@dataclass(frozen=True)
class Measured:
    """1−cos, and for each length the ratio of speeds with its least and greatest in a round."""

    engine: Engine
    loss: float
    ratios: dict[int, tuple[float, float, float]]


def in_process(name: str, size: int, model: Any) -> Engine:
    """An engine that is a SentenceTransformer here."""

    def encode(texts: Sequence[str]) -> tuple[float, Floats]:
        began = time.perf_counter()
        vectors = model.encode(list(texts))
        return time.perf_counter() - began, vectors

    return Engine(name, size, encode)


def of_torch(source: Source) -> Iterator[Engine]:
    """The denominator first."""
    import torch

    st = import_sentence_transformers()
    size = sum(file.stat().st_size for file in source.path.glob("*.safetensors"))
    kinds = {"fp32": torch.float32}
    if any(torch.cpu.get_capabilities().get(each) for each in ("avx512_bf16", "amx_bf16", "bf16")):
        kinds |= {"bf16": torch.bfloat16, "bf16 compiled": torch.bfloat16}
    for name, kind in kinds.items():
        model = st.SentenceTransformer(str(source.path), device="cpu", model_kwargs={"dtype": kind})
        if name.endswith("compiled"):
            compile_transformer(model)
        yield in_process(f"torch {name}", size * kind.itemsize // 4, model)


def of_ours(folder: Path, opened: ExitStack, scratch: Path) -> Iterator[Engine]:
    """Our artifacts, built where they are not there yet."""
    for recipe, formats in RECIPES.items():
        out = folder / recipe
        if not (out / MANIFEST).is_file():
            pipeline.build(Path(recipe), out, [f"formats={json.dumps(formats)}"])
        for path in out.glob("gguf/*.gguf"):
            worker = opened.enter_context(closing(Worker(path)))
            yield Engine(f"GGUF {recipe}", path.stat().st_size, through(worker, scratch))
        if (path := out / "torchao").is_dir():
            yield in_process(f"torchao {recipe}", format_named("torchao").weight_bytes(path), tierexport.load(str(path)))


def through(worker: Worker, scratch: Path) -> Callable[[Sequence[str]], tuple[float, Floats]]:
    def encode(texts: Sequence[str]) -> tuple[float, Floats]:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            encoded = worker.encode(texts, "", max(TEXTS), Path(folder))
            return encoded.seconds, encoded.vectors.copy()

    return encode


def of_peers(python: Path, source: Source, threads: int, opened: ExitStack, scratch: Path) -> Iterator[Engine]:
    for name in PEERS:
        folder = Path(tempfile.mkdtemp(dir=scratch))
        (folder / "texts.json").write_text(json.dumps([text.text for text in calibration_texts("builtin", 300)]), "utf-8")
        command = [str(each) for each in (python, HERE / "peers.py", name, source.path, folder, threads)]
        log = opened.enter_context((scratch / f"{name}.log").open("wb"))
        process = opened.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        )
        yield Engine(name, int(answer(process, name, scratch)), asking(process, name, scratch))


def asking(process: "subprocess.Popen[str]", name: str, scratch: Path) -> Callable[[Sequence[str]], tuple[float, Floats]]:
    import numpy as np

    def encode(texts: Sequence[str]) -> tuple[float, Floats]:
        path = scratch / "texts.json"
        path.write_text(json.dumps(texts), "utf-8")
        assert process.stdin
        print(path, file=process.stdin, flush=True)
        seconds = float(answer(process, name, scratch))
        return seconds, np.load(path.with_suffix(".npy"))

    return encode


def answer(process: "subprocess.Popen[str]", name: str, scratch: Path) -> str:
    """The next line of a peer, which ends this run with its last words where it has ended."""
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{name}: " + (scratch / f"{name}.log").read_text("utf-8", "replace")[-2000:])
    return line


def peers_python() -> Path:
    """The python of an environment with engines.txt, made where it is not there yet."""
    folder = cache_dir() / "engines" / f"environment-{file_digest(HERE / 'engines.txt')[:12]}"
    python = folder / "bin" / "python"
    if not (folder / "installed").is_file():
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", HERE / "engines.txt"], check=True)
        (folder / "installed").touch()
    return python


def windows(source: Source, tokens: int, count: int) -> list[str]:
    """Texts of so many tokens, special ones included: words from places in the calibration texts, cut by the tokenizer."""
    from transformers import AutoTokenizer

    words = " ".join(text.text for text in calibration_texts("builtin", 400)).split()
    starts = range(0, len(words) - tokens, (len(words) - tokens) // count)[:count]
    long = [" ".join(words[start : start + tokens]) for start in starts]
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    ends = tokenizer(long, truncation=True, max_length=tokens, return_offsets_mapping=True)["offset_mapping"]
    return [text[: max(end for _, end in each)] for text, each in zip(long, ends, strict=True)]


def measured(engines: Sequence[Engine], texts: dict[int, list[str]]) -> list[Measured]:
    """Every engine beside the first, after a round that isn't counted."""
    exact, *others = (engine.encode(screen())[1] for engine in engines)
    losses = [float(1 - cosines(each, exact).mean()) for each in (exact, *others)]
    times: dict[tuple[str, int], list[float]] = {(engine.name, length): [] for engine in engines for length in texts}
    for turn in range(ROUNDS + 1):
        for engine in (*engines[turn % len(engines) :], *engines[: turn % len(engines)]):
            for length, each in texts.items():
                times[engine.name, length].append(engine.encode(each)[0])
    counted = {key: seconds[1:] for key, seconds in times.items()}
    first = engines[0].name
    for length, each in texts.items():
        print(f"{first}: {len(each) / statistics.median(counted[first, length]):.1f} texts of {length} tokens per second")
    return [
        Measured(engine, loss, {length: ratio(counted[first, length], counted[engine.name, length]) for length in texts})
        for engine, loss in zip(engines, losses, strict=True)
    ]


def ratio(reference: Sequence[float], seconds: Sequence[float]) -> tuple[float, float, float]:
    """The ratio of medians, the least and the greatest of a round."""
    rounds = [a / b for a, b in zip(reference, seconds, strict=True)]
    return statistics.median(reference) / statistics.median(seconds), min(rounds), max(rounds)


def print_table(found: Sequence[Measured]) -> None:
    print("| engine | MB | 1−cos |", *(f"{length} tokens |" for length in TEXTS))
    print("|---|---|---|" + "---|" * len(TEXTS))
    for each in found:
        ratios = ("{:.2f} ({:.2f} to {:.2f}) |".format(*each.ratios[length]) for length in TEXTS)
        print(f"| {each.engine.name} | {each.engine.bytes / 1e6:.1f} | {each.loss:.6f} |", *ratios)


def picture(found: Sequence[Measured], threads: int) -> bytes:
    """Speed against loss, a line for each engine with a marker for each length."""
    drawn = figure(1.3, 4)
    axes = drawn.subplots()
    shown = [(each, max(each.loss, LEAST_LOSS)) for each in found[1:]]
    for each, loss in shown:
        colour = COLOURS[each.engine.name.split()[0]]
        axes.plot([each.ratios[length][0] for length in TEXTS], [loss] * len(TEXTS), color=colour, linewidth=0.8)
        for length, marker in zip(TEXTS, "ods", strict=True):
            axes.plot(each.ratios[length][0], loss, marker, color=colour, markersize=4)
    for length, marker in zip(TEXTS, "ods", strict=True):
        axes.plot([], [], marker, color="0.4", markersize=4, label=f"{length} tokens")
    axes.axvline(1, color="0.5", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xlabel(f"speed, sentence-transformers in fp32 being 1; {threads} thread{'s' if threads > 1 else ''}")
    axes.set_ylabel("1 − cosine to fp32, lower is better")
    axes.grid(color=GRID)
    axes.legend(frameon=False)
    name_points(drawn, [(each.engine.name, max(ratio for ratio, *_ in each.ratios.values()), loss) for each, loss in shown])
    return written(drawn, "svg")


def main(threads: int, to: Path | None, python: Path) -> None:
    source = open_source(MODEL)
    texts = {length: windows(source, length, count) for length, count in TEXTS.items()}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        scratch = Path(folder)
        engines = [
            *of_torch(source),
            *of_ours(cache_dir() / "engines", opened, scratch),
            *of_peers(python, source, threads, opened, scratch),
        ]
        found = measured(engines, texts)
        print_table(found)
        if to:
            to.write_bytes(picture(found, threads))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--python", type=Path)
    given = parser.parse_args()
    # Before torch is imported, and for every subprocess.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])
    main(given.threads, given.picture, given.python or peers_python())
