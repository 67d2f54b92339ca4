"""Preparing the next items in another thread while the present one is worked on."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["prefetched"]

T = TypeVar("T")


def prefetched(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Yield the items as they come, made up to `depth` items ahead in one other thread.

    Torch sets the interpreter free during its operations, so two threads use two cores. One thread makes all the items
    in their order: what they hold does not depend on `depth`.

    Args:
        items: Makes an item whenever it is asked for one; no one else may draw from its generators meanwhile.
        depth: Most items made and not yet taken; 0 makes each in the caller's thread when it is its turn.
    """
    if not depth:
        yield from items
        return
    end = object()
    waiting: deque[Future[T | object]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
        waiting.extend(pool.submit(next, items, end) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, items, end))
                yield item  # type: ignore[misc]  # all but `end` are of type T
        finally:
            pool.shutdown(cancel_futures=True)
