import threading
import time

import pytest

from dfkd_core.common.prefetching import prefetched


@pytest.mark.parametrize("depth", [0, 1, 2, 50])
def test_prefetched__gives_every_item_in_order(depth):
    assert list(prefetched(iter(range(20)), depth)) == list(range(20))
    assert list(prefetched(iter([]), depth)) == []


def test_prefetched__makes_no_more_than_depth_ahead_and_in_one_other_thread():
    made, threads = [], set()

    def make():
        for number in range(10):
            threads.add(threading.get_ident())
            made.append(number)
            yield number

    for number in prefetched(make(), 2):
        time.sleep(0.01)
        assert len(made) <= number + 3
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_prefetched__an_error_comes_at_its_item_and_ends_the_thread():
    def make():
        yield 1
        raise KeyError("second")

    items, before = prefetched(make(), 2), threading.active_count()
    assert next(items) == 1
    with pytest.raises(KeyError, match="second"):
        next(items)
    assert threading.active_count() == before


def test_prefetched__the_thread_ends_when_the_taker_stops():
    before = threading.active_count()
    items = prefetched(iter(range(100)), 2)
    next(items)
    assert threading.active_count() == before + 1
    items.close()
    assert threading.active_count() == before
