"""Memory of verifying 100,000 passages beside 10,000: vectors lie on the disk, similarities come in chunks.

A random BERT of one layer stands for the model and passages are drawn from the built-in texts, for it
is the passages' number that counts. The figure is the largest process's peak, worker included.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tierexport.base.libraries import import_sentence_transformers
from tierexport.datasets.calibration import calibration_texts
from tierexport.model.source import open_source

SIZES = (10_000, 100_000)
WORDS, QUERIES = 8, 200


def make_model(folder: Path) -> None:
    import_sentence_transformers()
    from transformers import BertConfig, BertModel

    shutil.copytree(open_source("all-MiniLM-L6-v2").path, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    sizes = {"hidden_size": 384, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 6}
    BertModel(BertConfig(vocab_size=30522, **sizes)).save_pretrained(folder)


def make_set(folder: Path, count: int) -> int:
    """`count` passages of random words, some queries out of them; the bytes of the texts."""
    words = sorted({word for text in calibration_texts("builtin", 400) for word in text.text.split()})
    generator = random.Random(0)  # noqa: S311 - no secrets here
    (folder / "qrels").mkdir(parents=True)
    passages = [" ".join(generator.choices(words, k=WORDS)) for _ in range(count)]
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": f"d{number}", "text": passage}) + "\n" for number, passage in enumerate(passages))
    )
    asked = [(f"q{number}", number, " ".join(passages[number].split()[:4])) for number in range(QUERIES)]
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": name, "text": text}) + "\n" for name, _, text in asked))
    (folder / "qrels" / "test.tsv").write_text("".join(f"{name}\td{number}\t1\n" for name, number, _ in asked))
    return sum(map(len, passages))


def peak(*arguments: str | Path) -> int:
    """Peak bytes of the largest process of a tierexport command."""
    command = [sys.executable, "-m", "tierexport", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} failed")
    return usage.ru_maxrss * 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TIEREXPORT_CACHE"] = str(Path(scratch) / "cache")
        model, out = Path(scratch) / "model", Path(scratch) / "out"
        # In a process of its own: children inherit the peak memory of the process that starts them.
        subprocess.run([sys.executable, __file__, str(model)], check=True, stderr=subprocess.DEVNULL)
        few = peak("build", "int8", "--set", f"model={model}", "--out", out)
        print(f"build, verified on 143 sentences: peak {few / 1e6:.0f} MB")
        for count in SIZES:
            size = make_set(Path(scratch) / f"set{count}", count)
            found = peak("verify", out, "--device", "cpu", "--data", Path(scratch) / f"set{count}")
            matrix = count * QUERIES * 8
            print(
                f"{count:7,} passages ({size / 1e6:.0f} MB of text, {count * 384 * 4 / 1e6:.0f} MB of vectors per encoder; "
                f"their similarities to the queries would take {matrix / 1e6:.0f} MB): peak {found / 1e6:.0f} MB"
            )


if __name__ == "__main__":
    make_model(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
