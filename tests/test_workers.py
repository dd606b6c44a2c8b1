"""Work is spread over cores without changing what comes out, and long work says how long it will take."""

import threading
import time

import pytest
import torch

from tierexport.base import progress, workers
from tierexport.base.progress import duration, stage
from tierexport.base.workers import on_cores


@pytest.fixture
def three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 3)


@pytest.mark.usefixtures("three_cores")
def test_workers_run_side_by_side_each_with_one_thread() -> None:
    together = threading.Barrier(3)
    before = torch.get_num_threads()

    def work(number: int) -> tuple[int, int]:
        together.wait(timeout=20)
        return number, torch.get_num_threads()

    assert on_cores(work, range(6)) == [(number, 1) for number in range(6)]
    assert torch.get_num_threads() == before


@pytest.mark.usefixtures("three_cores")
def test_what_a_worker_raises_is_raised() -> None:
    before = torch.get_num_threads()

    def work(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    with pytest.raises(ValueError, match="two"):
        on_cores(work, range(4))
    assert torch.get_num_threads() == before


def test_a_stage_says_how_long_it_took(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And a long one, after a share of it, how long it will."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with stage("Rounding") as running:
        running.total(1000)
        for steps in (1, 99, 900):
            now[0] += steps / 10 * 8
            running.step(steps)
    with stage("Short"):
        now[0] += progress.LONG - 1
    assert capsys.readouterr().err.splitlines() == [
        "tierexport: Rounding: about 12 min 00 s more",
        "tierexport: Rounding: 13 min 20 s",
        "tierexport: Short: 29 s",
    ]


def test_durations_are_said_as_people_say_them() -> None:
    assert [duration(seconds) for seconds in (0.4, 59.4, 59.6, 61, 3725)] == [
        "0.4 s",
        "59 s",
        "1 min 00 s",
        "1 min 01 s",
        "62 min 05 s",
    ]
