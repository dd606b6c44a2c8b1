"""One table of what a run of verify.sh found: `summary.py RESULTS NAME...` writes RESULTS/summary.md."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLUMNS = ("recipe", "format", "device", "cos mean", "cos p1", "cos min", "top-10 kept", "texts/s", "fp32 texts/s")


def summary(results: Path, names: list[str]) -> str:
    """Markdown: the machine, then a row for each artifact on each device."""
    verified = {name: _verdicts(results / f"{name}.json") for name in names}
    sets = sorted({each["dataset"] for verdicts in verified.values() for verdict in verdicts for each in verdict["retrieval"]})
    columns = [*COLUMNS, *(f"{name} Δ NDCG@10 vs fp32 [95 %]" for name in sets)]
    rows = [row for name, verdicts in verified.items() for row in _rows(name, verdicts, sets)]
    lines = [f"- {line.strip()}" for line in (results / "device.txt").read_text("utf-8").splitlines()]
    table = [columns, ["---"] * len(columns), *rows]
    return "\n".join([*lines, "", *(f"| {' | '.join(row)} |" for row in table), ""])


def _verdicts(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["results"] if path.is_file() else []
    return found


def _rows(name: str, verdicts: list[dict[str, Any]], sets: list[str]) -> Iterator[list[str]]:
    if not verdicts:
        yield [name, "no verdict: see log.txt"]
    for verdict in verdicts:
        row = [name, verdict["format"], verdict["device"]]
        if verdict["status"] != "ok":
            yield [*row, f"{verdict['status']}: {verdict['reason']}"]
            continue
        row += [f"{verdict[key]:.6f}" for key in ("cos_mean", "cos_p1", "cos_min")] + [f"{verdict['top10_retention']:.4f}"]
        row += [_speed(verdict[key]) for key in ("texts_per_second", "reference_texts_per_second")]
        scored = {each["dataset"]: each for each in verdict["retrieval"]}
        yield row + [_score(scored[each]) if each in scored else "" for each in sets]


def _speed(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _score(found: dict[str, Any]) -> str:
    return f"{found['ndcg_at_10']:.4f}, {found['delta']:+.4f} [{found['ci_low']:+.4f}, {found['ci_high']:+.4f}]"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "summary.md").write_text(summary(folder, sys.argv[2:]), "utf-8")
