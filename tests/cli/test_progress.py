from __future__ import annotations

import io

import pytest
from rich.console import Console

from lossdoctor.cli.progress import LOG_SECONDS, Phases


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def logged(steps: int, seconds_per_step: float, lang: str = "en") -> list[str]:
    file, clock = io.StringIO(), Clock()
    with Phases(Console(file=file, width=100), lang, clock=clock) as phases:
        for done in range(steps + 1):
            phases.at("train", done, steps, {"flow": 0.5, "kl": 12.0} if done else None)
            clock.now += seconds_per_step
    return file.getvalue().splitlines()


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end() -> None:
    lines = logged(800, 0.125)
    assert len(lines) == int(100 / LOG_SECONDS)
    assert lines[0] == "training 80/800 (8.00 steps/s, 1 min 30 s left; flow 0.500  kl 12.0)"
    assert lines[-1] == "training 800/800 (8.00 steps/s; flow 0.500  kl 12.0)"


def test_a_short_phase_is_one_line() -> None:
    assert logged(20, 0.0) == ["training 20/20 (flow 0.500  kl 12.0)"]


def test_a_log_in_chinese() -> None:
    assert logged(10, 2.0, "zh-CN")[-1] == "训练 10/10 (0.500 步/秒; flow 0.500  kl 12.0)"


def test_each_phase_counts_its_own_time() -> None:
    file, clock = io.StringIO(), Clock()
    with Phases(Console(file=file, width=100), "en", clock=clock) as phases:
        phases.at("autoencoder", 0, 10)
        clock.now += 1000
        phases.at("autoencoder", 10, 10)
        phases.at("train", 0, 50)
        clock.now += 10
        phases.at("train", 50, 50)
    assert file.getvalue().splitlines()[-1] == "training 50/50 (5.00 steps/s)"


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_a_terminal_gets_bars_and_is_left_in_order(error: type[BaseException] | None) -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True)
    try:
        with Phases(console, "en") as phases:
            phases.at("autoencoder", 0, 5)
            phases.at("autoencoder", 5, 5)
            phases.at("train", 3, 10, {"flow": 0.25})
            phases.say("a sentence with [brackets]")
            if error:
                raise error
    except (KeyboardInterrupt, ValueError):
        pass
    shown = file.getvalue()
    assert "training" in shown
    assert "flow 0.250" in shown
    assert "a sentence with [brackets]" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, "the cursor is shown again"
