"""When a growing run is judged, and what is news then."""

from __future__ import annotations

from lossdoctor.rounds import GROWTH, News, Pace, key
from lossdoctor.rules import Finding
from lossdoctor.rules.finding import Message
from lossdoctor.rules.view import LEAST


def finding(code: str, loss: str | None = None) -> Finding:
    return Finding(code, "name", "warning", "likely", "root", Message("cause.detached-branch"), loss=loss)


def codes(findings: list[Finding]) -> list[str]:
    return [one.code for one in findings]


def test_all_rounds_together_keep_to_their_share_of_the_time() -> None:
    now, spent, measured, rounds = 0.0, 0.0, 0, []
    pace = Pace(share=0.01, first=0.2, clock=lambda: now)
    while now < 2000:
        now, measured = now + 0.5, 2 * pace.judged_at + LEAST
        if pace.due(measured):
            rounds.append(now)
            pace.begin(measured)
            assert not pace.due(10 * measured), "none while one runs"
            took = 0.1 * (1 + len(rounds) % 3)
            now, spent = now + took, spent + took
            pace.end()
            assert spent <= 0.01 * now + 0.2
    assert 20 <= rounds[0] < 21, "the first one is expected to take 0.2 s"
    assert spent > 0.5 * 0.01 * now, "and what they may take is used"


def test_a_run_has_to_grow() -> None:
    pace = Pace()
    assert not pace.due(LEAST - 1)
    assert pace.due(LEAST)
    pace = Pace(share=1e9)
    pace.begin(100)
    pace.end()
    assert not pace.due(int(100 * GROWTH) - 1)
    assert pace.due(int(100 * GROWTH))


def test_a_round_that_failed_is_made_again_after_its_rest() -> None:
    now = 100.0
    pace = Pace(share=0.01, clock=lambda: now)
    pace.begin(50)
    now += 0.1
    pace.fail()
    assert not pace.due(50)
    now += 20
    assert pace.due(50)


def test_what_is_there_twice_running_counts_and_is_told_once() -> None:
    news = News()
    assert news.hear([finding("A")], sure=False) == []
    assert codes(news.hear([finding("A"), finding("B")], sure=False)) == ["A"]
    assert news.hear([finding("A")], sure=False) == []
    assert news.standing == {key(finding("A"))}
    assert codes(news.hear([finding("A"), finding("A", "dino"), finding("B")], sure=True)) == ["A", "B"]


def test_what_went_is_a_suspicion_again() -> None:
    news = News()
    for _ in range(2):
        news.hear([finding("A")], sure=False)
    news.hear([], sure=False)
    assert news.standing == set()
    assert news.hear([finding("A")], sure=False) == []
    assert codes(news.hear([finding("A")], sure=False)) == ["A"]
