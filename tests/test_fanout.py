"""One source with several readers, none of which holds another up."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

from dithead.runtime.media.fanout import FanOut


def test_a_reader_is_not_kept_waiting_by_another() -> None:
    go_on = threading.Event()

    def slow() -> Iterator[int]:
        yield from (1, 2, 3)
        assert go_on.wait(10)
        yield 4

    shared = FanOut(slow(), (0, 1), lambda item: (0, 1) if item != 2 else (0,))
    results: list[list[int]] = []
    first = threading.Thread(target=lambda: results.append(list(shared.read(0))))
    first.start()
    found = [shared.take(1), shared.take(1)]  # while the first waits for the fourth
    assert found == [1, 3]
    go_on.set()
    assert list(shared.read(1)) == [4]
    first.join(5)
    assert results == [[1, 2, 3, 4]]


def test_who_waits_for_a_reader_gets_what_that_one_read() -> None:
    for _ in range(10):
        begin, go_on = threading.Event(), threading.Event()

        def source(begin: threading.Event, go_on: threading.Event) -> Iterator[int]:
            assert begin.wait(10)
            yield 1
            assert go_on.wait(10)
            yield 2

        shared = FanOut(source(begin, go_on), (0, 1), lambda item: (1,) if item == 1 else (0,))
        threads = [threading.Thread(target=shared.take, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
            time.sleep(0.02)  # the first reads, the second waits for it
        begin.set()
        threads[1].join(5)
        assert not threads[1].is_alive()
        go_on.set()
        threads[0].join(5)


def test_an_interrupted_reader_holds_nobody_up() -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        for after_us in range(200, 1200, 5):
            shared = FanOut(iter(range(10_000)), (0, 1), lambda _: (0,))
            try:
                signal.setitimer(signal.ITIMER_REAL, after_us / 1e6)
                while True:
                    shared.take(0)
            except KeyboardInterrupt:
                signal.setitimer(signal.ITIMER_REAL, 0)
            other = threading.Thread(target=shared.take, args=(1,), daemon=True)
            other.start()
            other.join(10)
            assert not other.is_alive()
    finally:
        signal.signal(signal.SIGALRM, before)
