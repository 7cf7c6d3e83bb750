"""Everything goes wrong at once, again and again, and every run still ends as promised.

What goes wrong follows from a seed, which names the test (CHAOS_SEED=7 pytest tests/chaos). When it
does depends on the machine too.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from contextlib import suppress
from functools import partial
from unittest.mock import patch

import psutil
from distributed import Client, Nanny, Status, Worker
from distributed.utils_test import gen_cluster

from handoff_dask import (
    AllocationError,
    FunctionFailedError,
    HandoffError,
    RunCancelledError,
    RunTimeoutError,
    TransferError,
    submit,
)
from handoff_dask.attempts.states import UNENDED
from handoff_dask.client import sending
from tests.chaos.dags import (
    COSTLY,
    Records,
    intervals,
    note_unmarked,
    random_dag,
    random_short_dag,
)

#: DAGs of one round, all at once; every other one consists of functions that travel together.
DAGS = 10
#: The most functions that are sent at once.
PORTION = 50
#: Harm done in one round, at most.
DEEDS = 12
#: Seconds for a round.
DEADLINE = 90
OFFERS = [
    {"cpu": 2, "memory": 1000},
    {"cpu": 2, "memory": 1000, "gpu": 1},
    {"cpu": 4, "memory": 4000, "gpu": 1},
]
CONFIG = {
    "handoff.lost-capacity-grace": "30s",
    # Otherwise the memory monitor has workers go on that were paused by hand.
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.scheduler.allowed-failures": 0,
    # Dask's own checks do not stand a result that is lost after what it needs has failed.
    "distributed.scheduler.validate": False,
}
chaotic = partial(gen_cluster, client=True, nthreads=[], timeout=110, config=CONFIG)


class Watch:
    """Samples repeatedly what the scheduler considers claimed."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.looks = []
        self._looking = asyncio.create_task(self._look())

    async def _look(self):
        while True:
            plugin = self.scheduler.plugins.get("handoff")
            if plugin is not None:
                now, ask = time.time(), plugin.engine.questions
                ahead = {r.worker for r in plugin.functions.values() if ask.waits_ahead(r.key)}
                endings = plugin.endings._endings.values()
                ahead.update(ending.worker for ending in endings if not ending.claims)
                # What was handed ahead may have started as soon as something else has ended.
                exact = plugin.registry.names.keys() - ahead
                claims = {a: (ask.slots(a), ask.claimed(a)) for a in exact}
                self.looks.append((now, claims))
            await asyncio.sleep(0.01)

    async def stop(self):
        self._looking.cancel()
        with suppress(asyncio.CancelledError):
            await self._looking

    def check(self, ran):
        """No worker ran more than it offers, and everything that ran was claimed."""
        for interval in ran:
            beside = [
                other
                for other in ran
                if other.worker == interval.worker
                and other.started <= interval.started < other.stopped
            ]
            assert len(beside) <= interval.threads, beside
            assert fits(beside, interval.offered), beside
        events = sorted(ran, key=lambda interval: interval.started)
        running = []
        for now, claims in self.looks:
            while events and events[0].started < now:
                running.append(events.pop(0))
            running = [interval for interval in running if interval.stopped > now]
            for address, ((free, slots), claimed) in claims.items():
                there = [interval for interval in running if interval.worker == address]
                assert len(there) <= slots - free, (claims[address], there)
                assert fits(there, claimed), (claims[address], there)


def fits(intervals, amounts):
    """Whether simultaneous functions cost at most these amounts, apart from rounding."""
    return all(
        sum(interval.cost.get(name, 0) for interval in intervals) <= amounts.get(name, 0) + 1e-3
        for name in COSTLY
    )


class Monkey:
    """Removes workers and adds others."""

    def __init__(self, rng, scheduler, cls, root):
        self.rng, self.scheduler, self.cls, self.root = rng, scheduler, cls, root
        self.workers = []
        self.offers = {}
        self.added = 0
        self.calm = asyncio.Event()
        self.done = []

    async def add(self):
        offered = [self.offers[worker] for worker in self.workers]
        # What no worker offers any more comes first, so that nothing is impossible for long.
        offer = min(OFFERS, key=offered.count)
        self.added += 1
        worker = self.cls(
            self.scheduler.address, nthreads=2, name=self.added, resources=offer, memory_limit=0
        )
        with suppress(RuntimeError):  # one that does not get up
            self.workers.append(await worker)
            self.offers[worker] = offer

    async def rage(self):
        """Do harm until told to stop, and only so often: otherwise nothing would ever end."""
        deeds = [self.add, self.retire, self.close, self.drop, self.pause]
        if self.cls is Nanny:
            deeds += [self.kill, self.kill, self.kill, self.terminate]
        while not self.calm.is_set() and len(self.done) < DEEDS:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.calm.wait(), self.rng.uniform(0.02, 0.3))
                return
            deed = self.rng.choice(deeds)
            if deed == self.add and len(self.workers) > 4:
                continue
            self.done.append(deed.__name__)
            await deed()
            while len(self.workers) < len(OFFERS):
                await self.add()

    def victim(self):
        """Choose a running worker."""
        up = [worker for worker in self.workers if self.address(worker) in self.scheduler.workers]
        return self.rng.choice(up or self.workers)

    def address(self, worker):
        return worker.worker_address if self.cls is Nanny else worker.address

    async def retire(self):
        """Retire a worker, as a shrinking cluster does."""
        worker = self.victim()
        self.workers.remove(worker)
        if self.address(worker) in self.scheduler.workers:
            # Without a limit, Dask waits for ever for results that cannot be sent to another one.
            with suppress(asyncio.TimeoutError):
                retiring = self.scheduler.retire_workers([self.address(worker)])
                await asyncio.wait_for(retiring, 3)
        await worker.close()

    async def close(self):
        """Close a worker without telling the scheduler."""
        worker = self.victim()
        self.workers.remove(worker)
        await worker.close()

    async def drop(self):
        """Make the scheduler give up a worker, as if its heartbeats had stopped."""
        worker = self.victim()
        self.workers.remove(worker)
        if self.address(worker) is not None:
            await self.scheduler.remove_worker(self.address(worker), stimulus_id="monkey")
        await worker.close()

    async def pause(self):
        worker = self.victim()
        address = self.address(worker)
        ws = self.scheduler.workers.get(address)
        if ws is None:
            return
        for status in ("paused", "running"):
            self.scheduler.stream_comms[address].send(
                {"op": "worker-status-change", "status": status, "stimulus_id": "monkey"}
            )
            await asyncio.sleep(0.1)
            if address not in self.scheduler.stream_comms:
                return

    async def kill(self):
        await self._signal(signal.SIGKILL)

    async def terminate(self):
        await self._signal(signal.SIGTERM)

    async def _signal(self, number):
        """Send a process a signal, and record what it has started that has not recorded itself."""
        nanny = self.victim()
        for _ in range(1000):
            plugin, pid = nanny.plugins.get("handoff"), nanny.pid
            # Dask's nanny waits for ever for a worker that dies while it starts.
            up = nanny.process is not None and nanny.process.status is Status.running
            if up and pid is not None and plugin is not None:
                with suppress(psutil.NoSuchProcess, OSError):
                    os.kill(pid, signal.SIGSTOP)
                    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
                        await asyncio.sleep(0.001)
                    left = plugin.file.read()
                    known = left is not None and left.pid == pid and left.started is not None
                    if known:
                        note_unmarked(self.root, pid, left.started)
                        os.kill(pid, number)
                        os.kill(pid, signal.SIGCONT)
                        return
                with suppress(OSError):
                    os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.005)


def mismatches(dag, function, tried, records):
    """Yield differences between the ledger of a function and the functions' own records."""
    shown = f"{dag.id}.{function.id}: " + ", ".join(
        f"{a.outcome} on {a.worker_name}, {a.message}" for a in tried
    )
    started = records.starts.get((dag.id, function.id), 0)
    unknown = sum(a.started in records.unmarked or may_be_unmarked(a) for a in tried)
    if not len(tried) - unknown <= started <= len(tried):
        yield f"{started} starts of {shown}"
    if [a.number for a in tried] != list(range(1, len(tried) + 1)):
        yield f"numbers {[a.number for a in tried]} of {shown}"
    if sum(map(counts, tried)) > function.retry.max_retries + 1:
        yield f"too many for {function.retry.max_retries} retries: {shown}"


def may_be_unmarked(attempt):
    """Whether the function of an attempt may not have come to record itself.

    That holds of one that was taken back right after its start, of one whose worker closed then,
    and of one of which the ledger says that nobody knows whether it started.
    """
    if attempt.outcome == "cancelled":
        return True
    # The second is of a worker that the scheduler had given up: it closes, and reports itself.
    texts = "it closed in order", "lost for an unknown reason", "it is not known"
    return attempt.outcome == "worker-lost" and any(text in attempt.message for text in texts)


async def assert_exact(dags, runs, root):
    """The ledger has every start, and what counts is never more than max_retries + 1.

    The scheduler may not have noticed the last of the harm yet: eventually.
    """
    deadline = asyncio.get_running_loop().time() + 30
    while True:
        statuses = [await run.status() for run in runs]
        records = Records.of(root)
        differences = []
        for dag, status in zip(dags, statuses, strict=True):
            for id_, function in dag.functions.items():
                tried = status["attempts"].get(id_, ())
                differences += mismatches(dag, function, tried, records)
            if any(status[state] for state in UNENDED):
                differences.append(f"{dag.id} still runs: {status}")
        if not differences:
            return
        assert asyncio.get_running_loop().time() < deadline, "\n".join(differences)
        await asyncio.sleep(0.1)


def counts(attempt):
    if attempt.outcome == "worker-lost":
        return "does not count" not in attempt.message
    return attempt.outcome in ("error", "timeout")


async def wreak_havoc(c, s, rng, root, cls):
    monkey = Monkey(rng, s, cls, root)
    for _ in OFFERS:
        await monkey.add()
    makers = [random_dag, random_short_dag] * (DAGS // 2)
    dags, values = zip(
        *(make(rng, f"dag{i}", root, cls is Nanny) for i, make in enumerate(makers)), strict=True
    )
    # Runs that end early are beside the others.
    ends_early = ["raise", "cancel", "cancel some", "timeout", "leave"]
    modes = [rng.choice(["continue", "continue", *ends_early]) for _ in dags]
    modes[:4] = ["continue", "continue", "cancel", "cancel some"]
    watch = Watch(s)
    rage = asyncio.create_task(monkey.rage())
    with patch.object(sending, "PORTION", PORTION):
        going = [
            run_one(c, rng, dag, mode, make is random_short_dag)
            for dag, mode, make in zip(dags, modes, makers, strict=True)
        ]
        ended = await asyncio.wait_for(asyncio.gather(*going), DEADLINE)
    runs, ends = zip(*ended, strict=True)
    monkey.calm.set()
    await rage
    await threads_ended(s)
    await watch.stop()
    ran = intervals(root)
    watch.check(ran)
    assert sum(interval.bundled for interval in ran) > 20

    for dag, right, mode, end in zip(dags, values, modes, ends, strict=True):
        check_end(dag, right, mode, end, root)
    kept = [i for i, mode in enumerate(modes) if mode == "continue"]
    await assert_exact([dags[i] for i in kept], [runs[i] for i in kept], root)
    return monkey


async def run_one(c, rng, dag, mode, short):
    """Run a DAG; return its run and how that ended."""
    client = c
    if mode == "leave":
        client = await Client(c.scheduler.address, asynchronous=True, set_as_default=False)
    run = await submit(
        dag,
        client=client,
        on_error="raise" if mode == "raise" else "continue",
        placement_timeout=30,
        timeout=rng.uniform(0.1, 2) if mode == "timeout" else None,
        durations=dict.fromkeys(dag.functions, 0.001) if short else None,
    )
    if mode in ("cancel", "cancel some", "leave"):
        await asyncio.sleep(rng.uniform(0, 0.3))
    if mode == "cancel":
        await run.cancel()
    elif mode == "cancel some":
        await c.cancel([run.futures[id_] for id_ in rng.sample(list(dag.functions), 3)])
    elif mode == "leave":
        await client.close()
        return None, None
    (end,) = await asyncio.gather(run.result(), return_exceptions=True)
    return run, end


async def threads_ended(s):
    """Wait until no thread of a run that ended early is left."""
    deadline = asyncio.get_running_loop().time() + 30
    while len(s.plugins["handoff"].endings):
        assert asyncio.get_running_loop().time() < deadline, s.plugins["handoff"].endings.counts()
        await asyncio.sleep(0.01)


def check_end(dag, right, mode, end, root):
    """A run ended in the right results or in a named error."""
    if mode == "leave":
        return
    early = {
        "cancel": RunCancelledError,
        "cancel some": RunCancelledError,
        "timeout": RunTimeoutError,
    }
    if mode in early and isinstance(end, BaseException):
        assert isinstance(end, early[mode]), end
        return
    if mode == "raise" and isinstance(end, BaseException):
        if isinstance(end, AllocationError):
            return  # what it needs was gone for too long
        assert isinstance(end, FunctionFailedError), end
        failed = dag.functions[end.function_id]
        # Else an input of it cannot be sent, or its own value.
        if not isinstance(end.__cause__, TransferError) and end.attempts[-1].outcome != "ok":
            assert sum(map(counts, end.attempts)) == failed.retry.max_retries + 1, end.attempts
            assert not list(mismatches(dag, failed, end.attempts, Records.of(root)))
        end = end.partial
    assert not isinstance(end, BaseException), end
    for id_ in dag.functions:
        if id_ in end.errors:
            assert isinstance(end.errors[id_], HandoffError), end.errors[id_]
        elif mode == "continue" or id_ in end.results:
            assert end.results[id_] == right[id_]


async def assert_nothing_is_left(c, s, monkey):
    """No task, record or claim is left; every worker has everything free."""
    plugin = s.plugins["handoff"]

    async def leftovers():
        gc.collect()  # errors refer to the runs that they ended
        remains = {
            "tasks": {key: ts.state for key, ts in s.tasks.items()},
            "runs": plugin.runs,
            "records": plugin.functions,
            "ending": len(plugin.endings),
            "lost": len(plugin.inquiries),
        }
        for address in plugin.registry.names:
            claimed = plugin.engine.questions.claimed(address)
            remains[f"claimed on {address}"] = {n: v for n, v in claimed.items() if v}

        def in_use(dask_worker):
            state = dask_worker.state
            # Dask never forgets a copy that a worker was to take over from one that retires, and
            # could not fetch, because a value among them cannot be sent.
            left = [ts for ts in state.tasks.values() if ts.state != "error"]
            return state.available_resources != state.total_resources or len(left)

        if not any(remains.values()):
            with suppress(OSError):
                remains.update(await c.run(in_use, on_error="ignore"))
        return {what: left for what, left in remains.items() if left}

    deadline = asyncio.get_running_loop().time() + 30
    while left := await leftovers():
        assert asyncio.get_running_loop().time() < deadline, left
        await asyncio.sleep(0.05)


@chaotic()
async def test_processes(c, s, seed, rng, tmp_path):
    """On worker processes that are killed, retire, pause and join, every run ends as promised."""
    monkey = await wreak_havoc(c, s, rng, str(tmp_path), Nanny)
    await assert_nothing_is_left(c, s, monkey)
    # Dask's nanny never ends if it is closed while it starts a worker again.
    deadline = asyncio.get_running_loop().time() + 30
    while any(n.process and n.process.status is Status.starting for n in monkey.workers):
        assert asyncio.get_running_loop().time() < deadline, "a worker did not come back"
        await asyncio.sleep(0.05)
    await asyncio.gather(*(worker.close() for worker in monkey.workers))


@chaotic()
async def test_in_process(c, s, seed, rng, tmp_path):
    """The same on workers in one process, which close, retire, pause and join."""
    monkey = await wreak_havoc(c, s, rng, str(tmp_path), Worker)
    await assert_nothing_is_left(c, s, monkey)
    await asyncio.gather(*(worker.close() for worker in monkey.workers))
