"""Speeds are those of a quiet measurement, or none."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from manifests import manifest_of
from tierexport.artifact.verdicts import Fidelity, Verdict, Verification
from tierexport.base.records import Encoded
from tierexport.report.card import render_card
from tierexport.report.page import render_page
from tierexport.verify import speed
from tierexport.verify.speed import FEWEST_ROUNDS, WITHIN, Encode, Speed, ratio_interval, side_by_side

SECONDS = 60.0
FIDELITY = Fidelity(143, 0.99, 0.98, 0.97, 0.96, 0.95, (0.98, 1.0), (0.95, 0.97))


@pytest.fixture(autouse=True)
def _a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is outside of tests."""
    monkeypatch.setattr(speed, "SECONDS", SECONDS)


class Machine:
    """A clock, and programs that take as long as they are told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turns: list[str] = []

    def program(self, name: str, seconds: Callable[[int], float]) -> Encode:
        def encode(texts: Sequence[str], folder: Path) -> Encoded:
            took = seconds(self.turns.count(name))
            self.now += took
            self.turns.append(name)
            return Encoded(np.ones(len(texts), np.int64), np.zeros(0, np.int32), np.zeros((0, 0), np.float32), took)

        return encode

    def measured(self, ours: Callable[[int], float], reference: Callable[[int], float]) -> Speed:
        both = self.program("reference", reference), self.program("ours", ours)
        return side_by_side([f"text {number}" for number in range(32)], *both, clock=lambda: self.now)


def test_a_quiet_machine_takes_few_turns_and_gives_the_ratio() -> None:
    machine = Machine()
    found = machine.measured(lambda turn: 0.5 if turn else 9.0, lambda turn: 1.0 if turn else 5.0)  # the first round warms up
    assert found.reason is None
    assert [found.ours, found.reference] == pytest.approx([64, 32])
    assert found.ratio_ci == pytest.approx((2, 2))
    assert machine.turns == ["ours", "reference"] * (FEWEST_ROUNDS + 1)


def test_load_that_falls_on_both_does_not_count() -> None:
    found = Machine().measured(lambda turn: 0.5 * (1 + turn % 3), lambda turn: 1.0 * (1 + turn % 3))
    assert found.ratio_ci == pytest.approx((2, 2))


def test_turns_go_on_until_the_interval_is_within_a_tenth() -> None:
    noise = np.exp(np.random.default_rng(0).normal(0, 0.25, 1000))
    machine = Machine()
    found = machine.measured(lambda turn: 0.1 * noise[turn], lambda turn: 0.2)
    assert found.ours and found.reference and found.ratio_ci
    ratio = found.ours / found.reference
    low, high = found.ratio_ci
    assert max(high / ratio - 1, 1 - low / ratio) <= WITHIN
    assert FEWEST_ROUNDS < found.rounds < 80
    logs = np.log(0.2 / (0.1 * noise[1 : found.rounds + 1]))
    expected = stats.t.interval(0.95, found.rounds - 1, logs.mean(), stats.sem(logs))
    np.testing.assert_allclose(np.log(found.ratio_ci), expected)
    fewer = ratio_interval(logs[:-1])
    assert max(fewer[1] / np.exp(logs[:-1].mean()) - 1, 1 - fewer[0] / np.exp(logs[:-1].mean())) > WITHIN


@pytest.mark.parametrize("seconds", [0.01, 1.0, 100.0])
def test_a_noisy_machine_gives_none_within_a_minute(seconds: float) -> None:
    noise = np.random.default_rng(1).choice([1.0, 30.0], 10_000)
    machine = Machine()
    found = machine.measured(lambda turn: seconds * noise[turn], lambda _: seconds)
    assert (found.ours, found.reference, found.ratio_ci) == (None, None, None)
    assert found.reason
    assert machine.now <= SECONDS + 31 * seconds  # a round that has begun is not cut short
    assert len(machine.turns) <= 2 * (FEWEST_ROUNDS + 6)


def verification(verdict: Verdict) -> Verification:
    found = Verification("fp32 tiny", (verdict,))
    return Verification.from_json(json.loads(json.dumps(found.as_json())))


MANIFEST = manifest_of({"gguf": "gguf/a.gguf"}, revision="0" * 40)


def test_a_speed_is_stated_with_its_interval() -> None:
    verdict = Verdict("gguf", "cpu", "ok", None, True, 1.0, fidelity=FIDELITY)
    verdict = replace(verdict, texts_per_second=64, reference_texts_per_second=32, texts_per_second_ratio_ci=(1.9, 2.1))
    found = verification(verdict)
    assert found.as_json()["results"][0]["texts_per_second_ratio"] == 2
    assert found.verdicts == (verdict,)
    line = "- gguf on cpu: 64 texts/s, fp32 32 in the same run (2.00 ×), 95 % interval 1.90 to 2.10: the faster one."
    assert line in render_card(MANIFEST, found, "")
    assert "<td>64<td>32" in render_page(MANIFEST, found)


@pytest.mark.parametrize("stated", [{}, {"texts_per_second": 64, "reference_texts_per_second": 32}], ids=["none", "of old"])
def test_no_speed_is_stated_anywhere_without_an_interval(stated: dict[str, float]) -> None:
    verdict = Verdict("gguf", "cpu", "ok", None, True, 1.0, fidelity=FIDELITY, texts_per_second_reason="not quiet")
    older = Verification("fp32 tiny", (verdict,)).as_json()
    older["results"][0] |= stated
    if stated:
        del older["results"][0]["texts_per_second_ratio_ci"], older["results"][0]["texts_per_second_reason"]
        del older["results"][0]["texts_per_second_ratio"]
    found = Verification.from_json(older)
    assert found.as_json()["results"][0]["texts_per_second_ratio"] is None
    assert found.as_json()["results"][0]["texts_per_second"] is None
    assert "texts/s, fp32" not in render_card(MANIFEST, found, "")
    assert "<td>64" not in render_page(MANIFEST, found)
