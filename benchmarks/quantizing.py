"""Our GGUF writer beside llama-quantize: time and memory on a model of 335 M parameters.

Random weights in the shape of mxbai-embed-large (24 layers, 1024 wide), so that no hub is needed.
Both read the same fp32 GGUF and importance, and write the same types; runs alternate, and what is
printed is the ratio of the medians. Usage: `make bench`.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tierexport.base.libraries import import_sentence_transformers
from tierexport.base.records import Importance
from tierexport.formats import formats_of
from tierexport.formats.gguf.convert import converted
from tierexport.formats.gguf.imatrix import read_imatrix, write_imatrix
from tierexport.formats.gguf.write import write_gguf
from tierexport.formats.job import Job
from tierexport.model.source import open_source
from tierexport.quantize.targets import NOTHING_ROUNDED
from tierexport.recipe.plan import make_plan
from tierexport.recipe.read import parse_recipe

RUNS = 3
TYPES = ("Q8_0", "Q4_0", "IQ4_NL", "Q4_K")


def recipe(native: str, model: Path) -> dict[str, object]:
    rules = [{"tier": "all", "roles": ["embeddings", "attention", "ffn", "heads"]}]
    tiers = {"all": {"bits": 4, "gguf": native}}
    return {"name": native, "model": str(model), "formats": ["gguf"], "tiers": tiers, "rules": rules}


def make_model(folder: Path) -> None:
    import_sentence_transformers()
    from transformers import BertConfig, BertModel

    shutil.copytree(open_source("all-MiniLM-L6-v2").path, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    BertModel(BertConfig(vocab_size=30522, **sizes)).save_pretrained(folder)


def make_imatrix(model: Path, path: Path) -> None:
    """Random importance: its values don't change the work."""
    settings = parse_recipe(recipe("Q4_0", model), Path())
    (plan,) = make_plan(settings, open_source(str(model)), formats_of(settings)).formats
    rows = [row.tensor for row in plan.rows if row.tensor.layer is not None and row.tensor.role != "kept"]
    generator = np.random.default_rng(0)
    sums = {row.sources[0]: generator.uniform(1, 1000, row.shape[-1]) for row in rows}
    write_imatrix(Importance(sums, dict.fromkeys(sums, 1000), 1, "random"), rows, path)


def ours(native: str, model: Path, imatrix: Path, out: Path) -> None:
    """In a process of its own: print the seconds the writing took and the process's peak memory."""
    settings = parse_recipe(recipe(native, model), Path())
    source = open_source(str(model))
    made = make_plan(settings, source, formats_of(settings))
    means = read_imatrix(imatrix)
    started = time.perf_counter()
    write_gguf(Job(made.formats[0], made, means), NOTHING_ROUNDED, out, lambda _: None)
    seconds = time.perf_counter() - started
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))


def run_ours(native: str, model: Path, imatrix: Path, out: Path) -> tuple[float, float]:
    command = [sys.executable, __file__, native, str(model), str(imatrix), str(out)]
    seconds, peak = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    return seconds, peak


def run_theirs(tool: Path, native: str, fp32: Path, imatrix: Path, out: Path) -> tuple[float, float]:
    command = [str(tool), "--imatrix", str(imatrix), "--pure", str(fp32), str(out), native]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"llama-quantize failed on {native}")
    return time.perf_counter() - started, usage.ru_maxrss * 1024


def main() -> None:
    tool = Path(os.environ["TIEREXPORT_TOOLS"]) / "bin" / "llama-quantize"
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TIEREXPORT_CACHE"] = scratch
        model = Path(scratch) / "large"
        # In a process of its own: children inherit the peak memory of the process that starts them.
        subprocess.run([sys.executable, __file__, str(model)], check=True, stderr=subprocess.DEVNULL)
        imatrix, mine, theirs = (Path(scratch) / name for name in ("imatrix.gguf", "mine.gguf", "theirs.gguf"))
        make_imatrix(model, imatrix)
        fp32 = converted(open_source(str(model)))
        print(f"{fp32.stat().st_size / 1e9:.2f} GB of fp32, mapped into memory by both")
        print("type     time, ours / llama-quantize    peak memory, ours / llama-quantize (GB)")
        for native in TYPES:
            runs = [
                (run_ours(native, model, imatrix, mine), run_theirs(tool, native, fp32, imatrix, theirs)) for _ in range(RUNS)
            ]
            ratio = statistics.median(a[0] for a, _ in runs) / statistics.median(b[0] for _, b in runs)
            peaks = [max(run[side][1] for run in runs) / 1e9 for side in (0, 1)]
            print(f"{native:8} {ratio:10.2f}                     {peaks[0]:.2f} / {peaks[1]:.2f}")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        make_model(Path(sys.argv[1]))
    elif len(sys.argv) > 2:
        ours(sys.argv[1], *(Path(each) for each in sys.argv[2:5]))
    else:
        main()
