"""Who looks at what, and what each of them is told: the one place where runs that grow meet pages that are open.

Once a second the runs that somebody looks at are read on, in a thread; with nobody there nothing is done at all. What
is new goes to every open page as a message with a number. A page that was away asks with the last number it has and
gets what it missed, if that is still known, and else everything; so does one that is too slow to take its messages,
which are then dropped: memory stays bounded, and the page shows the latest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from typing import Any

from lossdoctor.errors import LossDoctorError
from lossdoctor.live.channel import QUEUE, REMEMBERED, Channel, Message, Subscriber, as_json
from lossdoctor.live.folder import Runs
from lossdoctor.live.growing import Growing, points
from lossdoctor.live.pages import parts, verdicts
from lossdoctor.report.thin import ThinRun
from lossdoctor.rounds import key

_log = logging.getLogger("lossdoctor")

READABLE = ("growing", "silent", "ended")

LIST = ""
"""The topic of the list of runs; the others are names of runs."""

EVERY = 1.0
"""Seconds between two looks."""
SCAN = 3.0
"""Seconds between two searches for new runs."""
JUDGING = 0.1
"""Share of one core that rules and the parts of pages they change may take."""
REFRESH = 20.0
"""Seconds after which the parts of a page that are not curves are made anew, without a diagnosis."""
SOON = 2.0
"""Seconds after which they are made anew when something has happened: a weight was changed, a fix was tried."""
LINGER = 60.0
"""Seconds a run is followed after the last page on it was closed, so that a page that comes back misses nothing."""
BEAT = 10.0
"""Seconds without a message after which a page is told that the connection lives."""
MOST_OPEN = 100
"""Run files held open; a run that is only listed is closed when there are more."""


class Hub:
    """Follows the runs of a folder for the pages that are open. Everything but reading happens on the event loop."""

    def __init__(self, runs: Runs) -> None:
        self.epoch = secrets.token_hex(4)
        self.stopping = False
        self.subscribers: set[Subscriber] = set()
        self._runs = runs
        self._growing: dict[str, Growing] = {}
        self._channels: dict[str, Channel] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        self._scanned = -SCAN
        self._seq = 0
        self._reading = threading.RLock()
        self._judging = threading.Lock()
        self._hurry = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    # Pages

    def subscribe(self, topics: Sequence[str], last: str = "") -> Subscriber:
        """A page opens, or comes back: `last` is the number of the last message it has."""
        one = Subscriber(topics)
        for topic in one.topics:
            self._channels.setdefault(topic, Channel(floor=self._seq)).left = 0.0
        epoch, _, number = last.partition("-")
        if epoch == self.epoch and number.isdecimal() and len(number) < 19:
            known = int(number)
            channels = [self._channels[topic] for topic in one.topics]
            missed = sorted((m for c in channels for m in c.ring if m.seq > known), key=lambda m: m.seq)
            if all(c.floor <= known for c in channels) and known <= self._seq and len(missed) <= QUEUE:
                one.stale = False
                one.queue.extend(missed)
        self.subscribers.add(one)
        self._hurry.set()
        return one

    async def expect(self, topics: Sequence[str]) -> None:
        """A page on these runs is on its way to a browser: make what it will ask for, while that reads its scripts."""
        for topic in topics:
            if await asyncio.to_thread(self._known, topic) and not self.stopping:
                self._channels.setdefault(topic, Channel(floor=self._seq, left=time.monotonic()))
                await asyncio.to_thread(self._everything, topic)

    def unsubscribe(self, one: Subscriber) -> None:
        """A page is closed."""
        self.subscribers.discard(one)
        for topic in self._lonely().intersection(one.topics):
            self._channels[topic].left = time.monotonic()

    async def stream(self, one: Subscriber) -> AsyncGenerator[bytes]:
        """Everything a page is sent, until it goes or the server stops."""
        yield b"retry: 2000\n\n"
        while not self.stopping and not one.gone:
            one.wake.clear()
            if one.stale:
                one.stale = False
                one.queue.clear()
                known = self._seq
                for place, topic in enumerate(one.topics):
                    event, told = await asyncio.to_thread(self._everything, topic)
                    # Only with the last of them a page has everything up to this number.
                    seq = known if place == len(one.topics) - 1 else 0
                    yield Message(seq, event, as_json(told)).wire(self.epoch)
            while one.queue and not one.stale:
                yield one.queue.popleft().wire(self.epoch)
            if not one.stale:
                try:
                    await asyncio.wait_for(one.wake.wait(), BEAT)
                except TimeoutError:
                    yield b"event: beat\ndata: {}\n\n"

    def curves(self, name: str, opened: str, places: Sequence[int]) -> bytes | None:
        """Some curves of a run, see `Growing.curves`. opened, places: of the "whole" that a page had.

        None when that was another run, when it was closed since, or when it cannot be read at this moment: then the
        page is being told. For a thread.
        """
        one = self._growing.get(name)
        if one is None or opened != f"{self.epoch}-{one.opened}" or not all(0 <= at < len(one.names) for at in places):
            return None
        try:
            return one.curves(places)
        except (LossDoctorError, OSError):
            return None

    def stop(self) -> None:
        """End all streams: the server stops."""
        self.stopping = True
        for one in self.subscribers:
            one.wake.set()
        self._hurry.set()

    # The two loops

    async def run(self) -> None:
        """Read and judge until stopped."""
        self._loop = asyncio.get_running_loop()
        judging = asyncio.create_task(self._judge())
        try:
            while not self.stopping:
                started = time.monotonic()
                if self._channels:
                    try:
                        for topic, event, told in await asyncio.to_thread(self._look, self._watched()):
                            self.publish(topic, event, told)
                    except Exception:  # one look that fails is not the end of the server
                        _log.exception("runs could not be looked at")
                    self._forget()
                took = time.monotonic() - started
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), max(took, EVERY - took))
                self._hurry.clear()
        finally:
            judging.cancel()
            for one in self._growing.values():
                one.close()

    async def _judge(self) -> None:
        while not self.stopping:
            topics = self._watched()
            name = next(self._due(topics), None)
            if name is None:
                await asyncio.sleep(EVERY / 4)
                continue
            try:
                took, told = await asyncio.to_thread(self._judged, name, name in topics)
            except Exception:
                _log.exception("%s could not be judged", name)
                took, told = EVERY, None
            if told is not None:
                self.publish(name, "parts", told)
            await asyncio.sleep(took * (1 / JUDGING - 1))

    def _due(self, topics: frozenset[str]) -> Iterator[str]:
        """Names of runs to judge: those somebody looks at, then the others of a list; that waited longest first."""
        now = time.monotonic()
        for name, one in sorted(self._growing.items(), key=lambda item: (item[0] not in topics, item[1].judged_at)):
            if one.pulse.state not in READABLE or not _looked_at(name, one, topics):
                continue
            channel = self._channels.get(name)
            age = 0.0 if channel is None else now - channel.judged_at
            old = age > REFRESH and channel is not None and channel.measured != one.measured
            answered = age > SOON and channel is not None and channel.answered != one.answered()
            if old or answered or one.judge.due(one.measured, sure=one.pulse.state == "ended"):
                yield name

    def _watched(self) -> frozenset[str]:
        return frozenset(self._channels)

    def _lonely(self) -> set[str]:
        return set(self._channels) - {topic for one in self.subscribers for topic in one.topics}

    def _forget(self) -> None:
        now = time.monotonic()
        for topic in self._lonely():
            if now - self._channels[topic].left > LINGER:
                del self._channels[topic]
                if topic == LIST:
                    self._rows.clear()
        held = [(name, one) for name, one in list(self._growing.items()) if one.open]
        spare = sorted((one for name, one in held if name not in self._channels), key=lambda one: one.changed)
        for one in spare[: max(0, len(held) - MOST_OPEN)]:
            one.close()

    def publish(self, topic: str, event: str, told: Any) -> None:
        """Tell all pages on a topic; event "another": what they have is of another run than the one there now."""
        channel = self._channels.get(topic)
        if channel is None:
            return
        self._seq += 1
        if event == "another":
            channel.ring.clear()
            channel.floor = self._seq
            for one in self.subscribers:
                if topic in one.topics:
                    one.spoil()
            return
        message = Message(self._seq, event, as_json(told))
        if len(channel.ring) == REMEMBERED:
            channel.floor = channel.ring[0].seq
        channel.ring.append(message)
        for one in self.subscribers:
            if topic in one.topics:
                one.put(message)

    # In threads

    def _look(self, topics: frozenset[str]) -> list[tuple[str, str, Any]]:
        with self._reading:
            told = list(self._scan())
            for name, one in list(self._growing.items()):
                if _looked_at(name, one, topics):
                    told += self._looked(name, one, name in topics)
            if LIST in topics and (rows := self._changed_rows()):
                told.append((LIST, "rows", rows))
            return told

    def _scan(self) -> Iterator[tuple[str, str, Any]]:
        now = time.monotonic()
        if now - self._scanned < SCAN:
            return
        found = self._runs.found()
        self._scanned = now
        for name, path in found.items():
            if name not in self._growing:
                self._growing[name] = Growing(name, path, self._runs.sound)
        for name in self._growing.keys() - found.keys():
            one = self._growing[name]
            one.look()
            if name in self._channels:
                yield from self._state(name, one)
            else:
                one.close()
                del self._growing[name]

    def _looked(self, name: str, one: Growing, followed: bool) -> Iterator[tuple[str, str, Any]]:
        another, news = one.look()
        if not followed:
            return
        if another:
            self._channels[name].parts = {}
            yield name, "another", None
        elif news:
            yield name, "points", {"run": name, "points": points(news)}
        yield from self._state(name, one)

    def _state(self, name: str, one: Growing) -> Iterator[tuple[str, str, Any]]:
        channel, state = self._channels.get(name), one.state()
        if channel is not None and state != channel.told_state:
            channel.told_state = state
            yield name, "state", state

    def _changed_rows(self) -> dict[str, Any]:
        rows = self._listed()
        changed = [row for name, row in rows.items() if self._rows.get(name) != row]
        gone = [name for name in self._rows if name not in rows]
        self._rows = rows
        return {"rows": changed, "gone": gone} if changed or gone else {}

    def _listed(self) -> dict[str, dict[str, Any]]:
        there = (
            one for one in self._growing.values() if not one.other and one.pulse.state not in ("absent", "deleted")
        )
        return {one.name: one.row() for one in there}

    def _opened(self, topic: str) -> None:
        """A run was opened for one page; others on it may have been waiting for it, or have another run's curves."""
        channel = self._channels.get(topic)
        if channel is not None:
            channel.parts = {}
        if self._loop is not None and sum(topic in one.topics for one in list(self.subscribers)) > 1:
            self._loop.call_soon_threadsafe(self.publish, topic, "another", None)

    def _known(self, topic: str) -> bool:
        with self._reading:
            if topic not in self._growing:
                self._scanned = -SCAN
                list(self._scan())
            return topic in self._growing

    def _everything(self, topic: str) -> tuple[str, Any]:
        """All there is to tell of a topic to a page that has nothing."""
        with self._reading:
            if topic == LIST:
                self._scanned = -SCAN
                list(self._scan())
                for name, each in self._growing.items():
                    if not each.open and not each.other and name not in self._channels:
                        each.look()
                return "rows", {"rows": list(self._listed().values()), "gone": [], "all": True}
            if not self._known(topic):
                return "state", Growing(topic, self._runs.root).state()
            one = self._growing[topic]
            if not one.open and one.look()[0]:
                self._opened(topic)
        channel = self._channels.get(topic)
        try:
            if one.pulse.state in READABLE:
                if channel is not None and not channel.parts:
                    self._judged(topic, True, first=True)
                told = dict(channel.parts) if channel is not None else {}
                opened, names = one.opened, list(one.names)
                curves = {"names": names, "opened": f"{self.epoch}-{opened}"}
                return "whole", {**one.state(), **curves, "parts": told, "verdicts": verdicts(one.judge.standing())}
        except (LossDoctorError, OSError):  # deleted or damaged this moment; the next look says so
            pass
        return "state", one.state()

    def _judged(self, name: str, followed: bool, *, first: bool = False) -> tuple[float, Any]:
        """Judge a run, if it is time, and make the parts of its page; returns the seconds it took and what changed.

        first: only if there are no parts yet; they may have come while this waited for its turn.
        """
        with self._judging:
            started = time.thread_time()
            one, channel = self._growing.get(name), self._channels.get(name)
            if one is None or (first and channel is not None and channel.parts):
                return 0.0, None
            one.judged_at = time.monotonic()
            try:
                measured, answered, sure = one.measured, one.answered(), one.pulse.state == "ended"
                run = ThinRun(one.read())
                # A page is shown what the rules say also while that is only what they lack. Experiments come after the
                # end of a run, and change what they say.
                again = sure and channel is not None and channel.answered not in ((), answered)
                due = again or one.judge.due(measured, sure=sure) or (followed and one.judge.diagnosis is None)
                fresh = one.judge.ask(run, measured, sure=sure) if due else []
                made = parts(one, run) if followed and channel is not None else {}
            except (LossDoctorError, OSError):
                return 1.0, None
            if channel is None or not made:
                return time.thread_time() - started, None
            changed = {part: told for part, told in made.items() if channel.parts.get(part) != told}
            channel.parts, channel.measured, channel.answered = made, measured, answered
            channel.judged_at = time.monotonic()
            leading = {key(group[0]) for group in one.judge.standing()}
            told = {
                "run": name,
                "parts": changed,
                "fresh": [f"{finding.code} {finding.name}" for finding in fresh if key(finding) in leading],
                "verdicts": verdicts(one.judge.standing()),
            }
            return time.thread_time() - started, told if changed else None


def _looked_at(name: str, one: Growing, topics: Collection[str]) -> bool:
    """On a page of its own, or in the list."""
    return name in topics or (LIST in topics and not one.other)
