"""What a store costs: small results, looking for many, and an array of 1 GB.

    python tests/benchmarks/bench_store.py [--folder /tmp] [--rounds 5] [--mb 1000]

The array is compared with `open().write()` of the same bytes to the same disk, in turns, each on a
file of its own after the disk has settled. Figures are medians.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy

from handoff_dask.model.attempt import Usage
from handoff_dask.store.entries import Location, Made
from handoff_dask.store.opened import OpenStore
from handoff_dask.store.result_store import Store

COUNT = 10_000
MADE = Made("'nightly'", "('load', 0)", "tcp://a:1", "a", "ada", 1e9, 1e9, Usage(1.0, None, 28))


def location(name: object) -> Location:
    """Return a location with a manifest of the usual size."""
    key = hashlib.sha1(repr(name).encode()).hexdigest()
    return Location(key, "pipeline.load", b'[{"pipeline.load":"%s"},{},{}]' % key.encode())


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def small(folder: Path) -> None:
    """Print what a small result costs."""
    store = OpenStore(Store(folder))
    places = [location(i) for i in range(COUNT)]
    value = {"loss": 0.25, "steps": list(range(20))}

    def per_result(times: Iterable[float]) -> str:
        return f"{statistics.median(times) * 1e6:6.0f} us"

    print(f"write {per_result(seconds(lambda p=p: store.write(p, value, MADE)) for p in places)}")
    print(f"read  {per_result(seconds(lambda p=p: store.read(p)) for p in places)}")
    absent = [location(-1 - i) for i in range(COUNT)]
    for name, asked in (("there", places), ("absent", absent)):
        times = [seconds(lambda asked=asked: store.look(asked)) / COUNT for _ in range(5)]
        print(f"look for {COUNT} that are {name}: {per_result(times)} each")


def large(folder: Path, mb: int, rounds: int) -> None:
    """Print what a large array costs."""
    array = numpy.random.default_rng(0).random(mb * 125_000)
    content = memoryview(array).cast("B")
    plain = folder / "plain"
    ratios, reads = [], []
    for number in range(rounds):
        times = {}
        store = OpenStore(Store(folder / str(number)))

        def write_plain() -> None:
            with open(plain, "wb") as file:
                file.write(content)

        def write_entry(store: OpenStore = store) -> None:
            assert store.write(location("large"), array, MADE)

        calls = [("plain", write_plain), ("store", write_entry)]
        for name, call in calls if number % 2 else reversed(calls):
            os.sync()
            times[name] = seconds(call)
        reads.append(seconds(lambda store=store: store.read(location("large"))))
        plain.unlink()
        list(store.remove(0))
        ratios.append(times["store"] / times["plain"])
        print(f"{mb} MB: store {times['store']:.2f} s, open().write() {times['plain']:.2f} s")
    print(f"ratio {statistics.median(ratios):.2f}; read {statistics.median(reads):.2f} s")


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mb", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        os.mkdir(os.path.join(folder, "large"))
        small(Path(folder, "small"))
        large(Path(folder, "large"), options.mb, options.rounds)


if __name__ == "__main__":
    main()
