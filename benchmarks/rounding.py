"""Our rounding beside llama-quantize's: every layer matrix of MiniLM at one type, with the same importance.

Both files are opened by llama.cpp and compared with fp32 on the 143 sentences, and for the types named on the
command line on retrieval sets, too; calibration uses the built-in texts, which are others. Time and peak
memory are those of a process that rounds and writes, fp32 GGUF and importance given.

Usage: `python benchmarks/rounding.py [--data BEIR_DIR]... [TYPE]...`; types without --data take seconds each.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import gguf

from tierexport import pipeline
from tierexport.artifact.verdicts import Verdict
from tierexport.base.records import Imatrix
from tierexport.formats.export import export
from tierexport.formats.gguf.convert import converted
from tierexport.formats.gguf.format import Gguf
from tierexport.formats.job import Job
from tierexport.recipe.plan import Plan
from tierexport.recipe.schema import VerifySettings

MODEL = "all-MiniLM-L6-v2"
TYPES = ("Q4_0", "Q4_1", "IQ4_NL", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")


def recipe(native: str, rounding: str) -> str:
    """The type in every matrix of a layer, or in those that a K-quant fits; the rest at Q8_0."""
    roles = '"ffn_down"' if native.endswith("_K") else '"attention", "ffn"'
    rest = '"embeddings", "attention", "ffn_up", "ffn_gate"' if native.endswith("_K") else '"embeddings"'
    return (
        f'name = "{native}"\nmodel = "{MODEL}"\nformats = ["gguf"]\nrounding = "{rounding}"\n'
        f'[tiers.all]\nbits = 4\ngguf = "{native}"\n[tiers.rest]\nbits = 8\n'
        f'[[rules]]\ntier = "all"\nroles = [{roles}]\n[[rules]]\ntier = "rest"\nroles = [{rest}]\n'
    )


def imatrix_of(made: Plan) -> Imatrix:
    return Gguf().calibrated(made.formats[0], made)


def ours(path: Path, out: Path) -> None:
    """In a process of its own: build, and print the seconds of rounding and writing, and the peak memory."""
    made = pipeline.plan(path)
    job = Job(made.formats[0], made, imatrix_of(made))
    started = time.perf_counter()
    artifact = export(Gguf(), job, out)
    seconds = time.perf_counter() - started
    print(json.dumps([str(artifact.path), seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def run_ours(path: Path, out: Path) -> tuple[Path, float, float]:
    done = subprocess.run([sys.executable, __file__, "ours", path, out], capture_output=True, check=True, text=True)
    file, seconds, megabytes = json.loads(done.stdout)
    return Path(file), seconds, megabytes


def run_theirs(native: str, fp32: Path, imatrix: Path, out: Path) -> tuple[Path, float, float]:
    tool = Path(os.environ["TIEREXPORT_TOOLS"]) / "bin" / "llama-quantize"
    kind = ["--tensor-type", f"ffn_down={native.lower()}"] if native.endswith("_K") else ["--pure"]
    table = ["--token-embedding-type", "q8_0", "--output-tensor-type", "q8_0"]
    rest = "Q8_0" if native.endswith("_K") else native
    started = time.perf_counter()
    command = [tool, "--imatrix", imatrix, *kind, *table, fp32, out, rest]
    process = subprocess.Popen([str(each) for each in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"llama-quantize failed on {native}")
    return out, time.perf_counter() - started, usage.ru_maxrss / 1024


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def judged(path: Path, data: tuple[str, ...]) -> Verdict:
    (verdict,) = pipeline.verify_again(path, MODEL, VerifySettings(data), ["cpu"]).verdicts
    if verdict.fidelity is None:
        raise SystemExit(f"{path}: {verdict.reason}")
    return verdict


def row(name: str, native: str, file: tuple[Path, float, float], verdict: Verdict) -> str:
    if verdict.fidelity is None:
        raise SystemExit(verdict.reason)
    low, high = verdict.fidelity.top10_ci
    figures = [
        f"{native:7} {name:15} {1 - verdict.fidelity.cos_mean:.6f}  {verdict.fidelity.top10_retention:.4f} "
        f"({low:.3f} to {high:.3f})  {file[1]:6.1f} s {file[2]:6.0f} MB  {file[0].stat().st_size:,} bytes"
    ]
    figures += [
        f"    {each.dataset}: 1-cos {1 - each.cos_mean:.6f}, NDCG@10 {each.ndcg_at_10:.4f}, "
        f"less fp32's {each.delta:+.4f} ({each.ci_low:+.4f} to {each.ci_high:+.4f})"
        for each in verdict.retrieval
    ]
    return "\n".join(figures)


@click.command()
@click.option("--data", multiple=True, help="Retrieval sets to judge on as well.")
@click.argument("natives", nargs=-1, metavar="[TYPE]...")
def main(data: tuple[str, ...], natives: tuple[str, ...]) -> None:
    """Compare, type by type."""
    print("type    rounding        1-cos     neighbours kept            time     peak")
    with tempfile.TemporaryDirectory() as scratch:
        made_of = {}  # all are made before any is judged: a child's peak memory is never below its parent's
        for native in natives or TYPES:
            path = Path(scratch) / f"{native}.toml"
            path.write_text(recipe(native, "gptq"))
            made = pipeline.plan(path)
            imatrix = imatrix_of(made).path
            if imatrix is None:  # Q8_0 is blind to it
                path.with_name("any.toml").write_text(recipe("Q4_0", "gptq"))
                imatrix = imatrix_of(pipeline.plan(path.with_name("any.toml"))).path
            fp32 = converted(made.source)
            mine = run_ours(path, Path(scratch) / f"ours-{native}")
            theirs = run_theirs(native, fp32, Path(str(imatrix)), Path(scratch) / f"theirs-{native}.gguf")
            if types(mine[0]) != types(theirs[0]):
                raise SystemExit(f"{native}: the files differ in their types, so they can't be compared")
            made_of[native] = mine, theirs
        for native, (mine, theirs) in made_of.items():
            first, second = judged(mine[0], data), judged(theirs[0], data)
            print(row("gptq", native, mine, first))
            print(row("llama-quantize", native, theirs, second), flush=True)
            if first.fidelity and second.fidelity:
                print(f"{native:7} ratio of 1-cos   {(1 - first.fidelity.cos_mean) / (1 - second.fidelity.cos_mean):.3f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["ours"]:
        ours(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
