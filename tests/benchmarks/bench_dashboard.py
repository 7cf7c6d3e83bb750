"""What the dashboard's panels cost the scheduler while somebody looks at them.

    python tests/benchmarks/bench_dashboard.py

The scheduler, its dashboard and the plugin are real. The 200 workers and 100,000 functions are made
up: a script tells engine and records what happens, at a fixed rate. The viewer is a process of its
own that receives what the pages send. Printed is the CPU time of the scheduler's process, as a
share of one core, without a viewer and with one that has all three panels open.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import re
import sys
import time

from distributed import Scheduler
from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import websocket_connect

from handoff_dask import HandoffPlugin
from handoff_dask.attempts.states import DONE, HELD, Assigned, Placement, Running
from handoff_dask.placement.events import Started, WorkerSpec
from handoff_dask.scheduler.dashboard import PAGES
from handoff_dask.wire.messages import FunctionRow, Portion, RunSpec

COSTS = [{"cpu": 1 + i % 3, "memory": 500 * (1 + i % 7), "gpu": i % 11 == 0} for i in range(20)]


class World:
    """Workers and functions that exist for the plugin alone."""

    def __init__(self, plugin, workers, seconds):
        self.plugin, self.seconds = plugin, seconds
        self.ends = []
        for i in range(workers):
            address = f"tcp://10.0.{i // 250}.{i % 250}:40000"
            capacity = {"cpu": 4, "memory": 16000, "gpu": i % 10 == 0}
            plugin.registry.names[address] = {name: name for name in capacity}
            plugin.engine.worker_added(WorkerSpec(address, str(i), address, capacity, slots=4))

    def open(self, functions):
        """Open four runs whose functions are ready at once."""
        count = functions // 4
        for number in range(4):
            rows = [
                FunctionRow(i, f"code{i % 5}", f"'function-{i}'", COSTS[i % len(COSTS)])
                for i in range(count)
            ]
            run_id = f"{number:032x}"
            spec = RunSpec(run_id, f"dag-{number}", "client", nodes=count, functions=count)
            _, run = self.plugin.runs.open(spec, spec.packed())
            self.plugin.runs.portion_arrived(run_id, Portion(run_id, 0, True, rows).packed())
            run.arrived.set()
            for record in run.records.values():
                self.plugin.functions[record.key] = record
                record.enter("ready", HELD)
                self.plugin.engine.function_ready(record.key, time.monotonic())

    def step(self):
        """End what is due and place what fits."""
        plugin, now = self.plugin, time.time()
        while self.ends and self.ends[0][0] <= now:
            _, _, record = heapq.heappop(self.ends)
            plugin.engine.attempt_ended(record.key, time.monotonic(), done=True)
            record.record(*record.state.placement, now)
            record.enter("succeeded", DONE)
        for decision in plugin.engine.poll(time.monotonic()):
            record = plugin.functions[decision.key]
            if isinstance(decision, Started):
                record.enter("started", Running(record.state.placement))
                continue
            placement = Placement(decision.worker, now)
            record.run.workers[decision.worker] = "worker", "host"
            if decision.ahead:
                record.enter("handed ahead", Assigned(placement))
            else:
                record.enter("placed", Running(placement))
            seconds = self.seconds * (0.5 + record.index % 100 / 100)
            heapq.heappush(self.ends, (now + seconds, id(record), record))


async def watch(port):
    """Open all panels, as a browser does, and count the messages that they send."""
    counts = dict.fromkeys(PAGES, 0)

    async def read(path):
        url = f"localhost:{port}{path}"
        page = await AsyncHTTPClient().fetch(f"http://{url}")
        token = re.search(rb'"token":"([^"]+)"', page.body).group(1).decode()
        socket = await websocket_connect(f"ws://{url}/ws", subprotocols=["bokeh", token])
        while await socket.read_message() is not None:
            counts[path] += 1

    readers = [asyncio.create_task(read(path)) for path in PAGES if "individual" in path]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for reader in readers:
        reader.cancel()
    print({path: count for path, count in counts.items() if count})


async def share(world, seconds):
    """Measure the CPU time of this process, as a share of a core."""
    began, cpu = time.monotonic(), time.process_time()
    while time.monotonic() < began + seconds:
        world.step()
        await asyncio.sleep(0.05)
    return (time.process_time() - cpu) / (time.monotonic() - began)


async def main(options):
    async with Scheduler(dashboard=True, dashboard_address=":0") as scheduler:
        plugin = HandoffPlugin()
        await plugin.start(scheduler)
        world = World(plugin, options.workers, options.duration)
        world.open(options.functions)
        await share(world, 5)
        port = scheduler.http_server.port
        idle, watched = [], []
        for _ in range(options.rounds):
            idle.append(await share(world, options.seconds))
            viewer = await asyncio.create_subprocess_exec(
                sys.executable,
                __file__,
                "--watch",
                str(port),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            await share(world, 5)
            watched.append(await share(world, options.seconds))
            report, _ = await viewer.communicate(b"")
            print(f"nobody looks {idle[-1]:.2%}, one viewer {watched[-1]:.2%}")
            print(f"messages: {report.decode()}", end="")
        held = sum(run.counts["held"] for run in plugin.runs.values())
        ended = plugin.history.ended
        print(f"{options.workers} workers, {held} functions held at the end, {ended} ended")
        print(f"the panels took {(sum(watched) - sum(idle)) / options.rounds:.2%} of a core")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--functions", type=int, default=100_000)
    parser.add_argument(
        "--duration", type=float, default=5.0, help="s a function takes, on average"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="s of each measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--watch", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    asyncio.run(main(options) if options.watch is None else watch(options.watch))
