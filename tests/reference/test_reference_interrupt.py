from __future__ import annotations

import signal
import threading

import pytest

from lossdoctor.reference.interrupt import deferred_interrupt


def test_the_first_interrupt_is_noted_and_the_second_raises() -> None:
    with deferred_interrupt() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_the_handler_comes_back_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="inside"), deferred_interrupt():
        raise RuntimeError("inside")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_handler_of_somebody_else_is_left_alone() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with deferred_interrupt():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_gets_no_handler() -> None:
    seen: list[object] = []

    def work() -> None:
        with deferred_interrupt() as interrupted:
            seen.extend([signal.getsignal(signal.SIGINT), interrupted()])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler, False]
