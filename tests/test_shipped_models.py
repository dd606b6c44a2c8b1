"""The descriptions in models/: each is planned without the model's files, as what its authors publish says."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, cache_of_its_own
from shipped_models import NAMES, NO_GGUF, planned, row
from tierexport.base.errors import PlanError
from tierexport.model import sketch
from tierexport.model.description import describe
from tierexport.recipe.planned import FormatPlan

PAGE = (ROOT / "docs/sizes.md").read_text("utf-8").splitlines()

MOST_MEMORY = 2_000_000
"""KiB that a plan takes at most, and a process that has imported torch and transformers 700,000 of them."""

WATCHED = """
import resource, subprocess, sys
done = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(done)
"""
"""Runs a command, and says how much memory it took, in KiB."""


@pytest.fixture(autouse=True)
def _nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has no file of any model."""
    monkeypatch.setattr(sketch, "has_come", lambda _: False)


@pytest.mark.usefixtures("_fast_converter", "_offline")
@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_description_is_planned_and_has_the_published_size(name: str) -> None:
    torchao = planned(name, "torchao")
    known = describe(name, Path())
    assert "parameters" not in known.published or _are(known.published["parameters"]["value"], torchao, known.config)
    assert known.published.get("layers", {}).get("value") in (None, 1 + max(each.tensor.layer or 0 for each in torchao.rows))
    gguf = None
    if name in NO_GGUF:
        with pytest.raises(PlanError, match=NO_GGUF[name]):
            planned(name, "gguf")
    else:
        gguf = planned(name, "gguf")
    assert row(name, gguf, torchao) in PAGE, "make docs writes it anew"


def _are(published: int, plan: FormatPlan, config: Mapping[str, Any]) -> bool:
    """Whether a plan's parameters are those that are published, which may be rounded.

    Heads after the pooling are counted by some and not by others, and so are the numbers of the positions, an old buffer.
    """
    zeros = len(str(published)) - len(str(published).rstrip("0"))
    heads = sum(row.tensor.parameters for row in plan.rows if "_Dense/" in row.tensor.name)
    alone = plan.parameters - heads
    counts = (plan.parameters, alone, alone + config.get("max_position_embeddings", 0))
    return any(round(count, -zeros) == published for count in counts)


def test_the_page_of_sizes_has_the_shipped_models() -> None:
    assert [line.split(" | ")[0].removeprefix("| ") for line in PAGE if line.startswith("| ")][2:] == NAMES


def test_a_plan_of_eight_billion_parameters_takes_little_memory(tmp_path: Path) -> None:
    """In processes of its own, the converter's included: 30 GB of weights are a hole in a file."""
    command = [sys.executable, "-m", "tierexport", "plan", "three_tier", "--set", "model=Qwen3-Embedding-8B", "--json"]
    cache = {"TIEREXPORT_CACHE": str(cache_of_its_own(tmp_path)), "HF_HUB_CACHE": str(tmp_path / "hub")}
    watched = [sys.executable, "-c", WATCHED, *command]
    done = subprocess.run(watched, env={**os.environ, **cache}, capture_output=True, check=True)
    assert {fmt["parameters"] for fmt in json.loads(done.stdout)["formats"]} == {7_567_295_488}
    assert int(done.stderr.splitlines()[-1]) < MOST_MEMORY
