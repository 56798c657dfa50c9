"""What threads make before it is asked for: batches while a GPU trains, a teacher's answers while they are kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


@contextlib.contextmanager
def in_advance(make: Callable[[int], Made], end: int, ahead: int, threads: int = 1) -> Iterator[Callable[[int], Made]]:
    """``make``, for numbers that are asked for in turn up to ``end``: ``threads`` are ``ahead`` of whoever asks.

    What ``make`` raises is raised when its number is asked for.
    """
    coming: dict[int, Future[Made]] = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="in advance") as pool:

        def made(number: int) -> Made:
            for later in range(number, min(number + ahead + 1, end)):
                if later not in coming:
                    coming[later] = pool.submit(make, later)
            return coming.pop(number).result()

        try:
            yield made
        finally:
            pool.shutdown(cancel_futures=True)
