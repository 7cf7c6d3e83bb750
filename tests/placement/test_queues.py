from __future__ import annotations

import random

from handoff_dask.placement.events import FunctionSpec
from tests.placement.conftest import Driver
from tests.placement.invariants import invariants


def test_a_queue_has_few_strata_however_much_is_learned() -> None:
    """What a queue sorts anew is one entry for each code, not one for each function."""
    rng = random.Random(0)
    d = Driver({"a": {"cpu": 4}})
    d.specs(*(FunctionSpec(i, {"cpu": 1}, code=f"code-{i % 5}") for i in range(1000)))
    d.ready(*range(1000))
    running = list(d.places())
    for _ in range(200):
        d.end(running.pop(rng.randrange(len(running))), duration=rng.uniform(1, 100))
        running += d.places()
        (queue,) = d.engine._ready.anywhere
        assert queue.live == len(queue.functions())
        assert len(queue.order.heads) <= 2 * 5
    invariants(d.engine)


def test_functions_that_come_and_go_leave_nothing_behind() -> None:
    """A queue from which functions are withdrawn and where they return does not grow."""
    d = Driver({"a": {"cpu": 1}})
    d.add({"first": {"cpu": 1}})
    d.places()
    d.add({i: {"cpu": 1} for i in range(20)})
    assert d.places() == {}
    for _ in range(50):
        for key in range(19, -1, -1):
            d.engine.function_withdrawn(key)
            d.ready(key)
        assert d.places() == {}
    (queue,) = d.engine._ready.anywhere
    assert queue.live == 20 and queue.order._size <= 2 * 20 + 33
    invariants(d.engine)
