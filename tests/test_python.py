"""The Python interface: the commands' values and errors, and a model that was trained a moment ago."""

import inspect
import json
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest

import tierexport
from conftest import RECIPES, Built, run
from tierexport.artifact.folder import read_verification
from tierexport.model.given import kept
from tierexport.search.study import Study

FUNCTIONS = ("quantize", "build", "verify", "inspect", "publish", "load")

SCRIPT = """
import json, sys
import numpy as np
import torch
import tierexport
from sentence_transformers import SentenceTransformer

folder, size = sys.argv[1:]
model = SentenceTransformer(folder, device="cpu")
texts = ["Berlin is the capital of Germany.", "what a loaf of bread costs", "The committee approved the budget."]
before = model.encode(texts)
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
for _ in range(3):
    found = model(model.preprocess(texts))["sentence_embedding"]
    loss = (found @ found.T).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

made = tierexport.quantize(model, size, name="tuned", base_model="alice/tiny", out="tuned-out")
(artifact,) = made.build.manifest.artifacts
vectors = tierexport.load(made.build.out / artifact.path).encode(texts)
published = tierexport.publish(made.build.out, "dir:there")
print(json.dumps({
    "summary": made.summary, "passed": made.build.verification.passed, "url": published.url,
    "tuned": float((vectors * model.encode(texts)).sum(1).min()), "before": float((vectors * before).sum(1).min()),
}))
"""


def test_every_function_is_there_typed_and_documented_and_nothing_heavy_is_loaded() -> None:
    for name in FUNCTIONS:
        function = getattr(tierexport, name)
        assert inspect.isfunction(function), name
        assert function.__doc__
        signature = inspect.signature(function)
        assert all(each.annotation is not inspect.Parameter.empty for each in signature.parameters.values())
        assert signature.return_annotation is not inspect.Signature.empty
    code = (
        "import sys, tierexport, tierexport.quantize.grids, tierexport.verify.intervals, tierexport.publish.targets\n"
        f"assert all(callable(getattr(tierexport, name)) for name in {FUNCTIONS!r})\n"
        "import json; print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "scipy.stats" not in json.loads(done.stdout)
    light = subprocess.run(
        [sys.executable, "-c", "import sys, tierexport; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    assert not {"numpy", "torch", "rich", "click", "pydantic"} & set(light.stdout.split())


def test_one_line_after_training_exports_the_model(tiny_model: Path, tmp_path: Path) -> None:
    size = f"{Study(str(tiny_model)).least * 1.4 / 1e6:.2f}MB"
    (tmp_path / "train.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "train.py", str(tiny_model), size], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["passed"] and told["url"] == "there"
    assert "× smaller), cosine 0.9" in told["summary"]
    assert told["tuned"] > 0.95
    assert told["before"] < told["tuned"] - 0.02  # it was trained away from what it was
    for path in (path for path in (tmp_path / "there").rglob("*") if path.is_file()):
        assert str(tmp_path).encode() not in path.read_bytes(), path
        assert b"/given/" not in path.read_bytes(), path
    manifest = json.loads((tmp_path / "there" / "manifest.json").read_text())["model"]
    assert (manifest["name"], manifest["base_model"]) == ("tuned", "alice/tiny")
    assert next((tmp_path / "there").glob("gguf/tuned-TIER_*MB.gguf")).is_file()


def test_functions_return_what_commands_print(three_tier: Built) -> None:
    (gguf,) = (three_tier.folder / "gguf").glob("*.gguf")
    shown = json.loads(run("inspect", gguf, "--json").stdout)["artifacts"]
    assert [each.as_json() for each in tierexport.inspect(gguf)] == json.loads(json.dumps(shown))
    dry = tierexport.publish(three_tier.folder, "dir:nowhere", dry_run=True)
    listed = json.loads(run("publish", three_tier.folder, "--to", "dir:nowhere", "--dry-run", "--json").stdout)
    assert json.loads(json.dumps(dry.as_json())) == listed


def test_build_and_verify(tiny_model: Path, tmp_path: Path) -> None:
    settings = (f"model={tiny_model}", 'formats=["gguf"]', "rounding=nearest")
    made = tierexport.build("int8", tmp_path / "out", overrides=settings)
    assert made.out == tmp_path / "out"
    assert made.verification.passed
    found = tierexport.verify(made.out, devices=["cpu"])
    assert [each.fidelity for each in found.verdicts] == [each.fidelity for each in read_verification(made.out).verdicts]
    assert np.isclose(found.verdicts[0].fidelity.cos_mean, made.verification.verdicts[0].fidelity.cos_mean)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tierexport.quantize("no-such-model", "16MB"), "there is no model 'no-such-model'"),
        (lambda: tierexport.quantize("all-MiniLM-L6-v2", "16"), "'16' is no size"),
        (lambda: tierexport.build(RECIPES / "none.toml"), "can't read the recipe"),
        (lambda: tierexport.verify("x.gguf"), "name its fp32 model with --model"),
        (lambda: tierexport.inspect("/no/such/file"), "can't read /no/such/file"),
        (lambda: tierexport.publish("/no/such/folder", "dir:x"), "can't read"),
        (lambda: tierexport.load("/no/such/file"), "is neither a GGUF file"),
    ],
)
def test_errors_are_the_commands_own(call: typing.Callable[[], object], message: str) -> None:
    with pytest.raises(tierexport.TierexportError, match=message):
        call()


def test_a_model_in_memory_is_kept_once(tiny_model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_model), device="cpu")
    folder = kept(model, "mine")
    assert folder.name == "mine"
    assert kept(model, "mine") == folder
    assert kept(model, "other") != folder
    with pytest.raises(tierexport.InputError, match="can't name a model"):
        kept(model, "../mine")
