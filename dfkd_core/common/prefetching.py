"""Preparation of the next items in another thread while the present one is processed."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["prefetched"]

T = TypeVar("T")


def prefetched(items: Iterator[T], depth: int) -> Generator[T, None, None]:
    """Yield the items in order, computed up to `depth` items ahead in one other thread.

    Torch releases the interpreter lock during its operations, so two threads use two cores. One thread computes all the
    items in order, so their contents do not depend on `depth`.

    Args:
        items: Computes an item on each request; nothing else may draw from its generators in the meantime.
        depth: Maximum number of items computed and not yet taken; 0 computes each in the caller's thread on request.
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
