"""Whole builds of a deep model beside llama.cpp's own chain: time and memory, on a model of 335 M parameters.

Random weights in the shape of BERT-large (24 layers, 1,024 wide, 4,096 in the FFN), so that no hub is needed. The chain is
conversion to F32, llama-imatrix on as many tokens, llama-quantize to the same type. Runs alternate, each in processes of its
own and with an empty cache; what is printed is the ratio of the medians, and the peak memory of a process. A build verifies
what it made, which the chain does not. Usage: `python benchmarks/deep.py [TURNS]`; a turn takes some 20 minutes.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from quantizing import make_model

from tierexport.datasets.calibration import every_text
from tierexport.formats.gguf.convert import converted
from tierexport.model.batches import within
from tierexport.model.encoder import open_model
from tierexport.model.source import open_source

TOKENS = 24_576
ROUNDINGS = ("nearest", "gptq")
AS_ENCODER = ("--override-kv", "tokenizer.ggml.add_eos_token=bool:false", "-c", "512", "-b", "512", "-ub", "512", "--no-ppl")
"""Without these llama-imatrix aborts on a model of BERT's kind."""

RECIPE = """
name = "deep"
model = "{model}"
formats = ["gguf"]
rounding = "{rounding}"
[calibration]
tokens = {tokens}
[tiers.all]
bits = 4
gguf = "Q4_0"
[[rules]]
tier = "all"
roles = ["embeddings", "attention", "ffn", "heads"]
"""


def measured(command: Sequence[str | Path], cache: Path) -> tuple[float, float]:
    """Seconds that a command takes, and its peak memory in GB."""
    started = time.perf_counter()
    environment = {**os.environ, "TIEREXPORT_CACHE": str(cache)}
    process = subprocess.Popen([str(each) for each in command], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[0]} failed")
    return time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e9


def build(model: Path, rounding: str) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as scratch:
        recipe = Path(scratch) / "deep.toml"
        recipe.write_text(RECIPE.format(model=model, rounding=rounding, tokens=TOKENS))
        command = [sys.executable, "-m", "tierexport", "build", str(recipe), "--out", f"{scratch}/out"]
        return measured(command, Path(scratch) / "cache")


def chain(model: Path, texts: Path) -> tuple[float, float]:
    """llama.cpp's own way to a file of the same types."""
    tools = Path(os.environ["TIEREXPORT_TOOLS"]) / "bin"
    with tempfile.TemporaryDirectory() as scratch:
        fp32, imatrix, out = (Path(scratch) / name for name in ("fp32.gguf", "imatrix.gguf", "out.gguf"))
        runs = [
            measured([sys.executable, __file__, model, fp32], Path(scratch) / "cache"),
            measured([tools / "llama-imatrix", "-m", fp32, "-f", texts, "-o", imatrix, *AS_ENCODER], Path(scratch)),
            measured([tools / "llama-quantize", "--imatrix", imatrix, "--pure", fp32, out, "Q4_0"], Path(scratch)),
        ]
        return sum(seconds for seconds, _ in runs), max(peak for _, peak in runs)


def main(turns: int) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        model, texts = Path(scratch) / "large", Path(scratch) / "texts.txt"
        make_model(model)
        encoder = open_model(open_source(str(model)))
        texts.write_text("\n".join(text.text for text in within(encoder, every_text("builtin"), TOKENS)), "utf-8")
        del encoder
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in ("chain", *ROUNDINGS)}
        for _ in range(turns):
            runs["chain"].append(chain(model, texts))
            for rounding in ROUNDINGS:
                runs[rounding].append(build(model, rounding))
        whole = statistics.median(seconds for seconds, _ in runs["chain"])
        for name, found in runs.items():
            seconds, peak = statistics.median(each for each, _ in found), max(each for _, each in found)
            print(f"{name:8} {seconds:6.0f} s, {seconds / whole:.2f} of the chain's; peak {peak:.2f} GB")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        Path(sys.argv[2]).symlink_to(converted(open_source(sys.argv[1])))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
