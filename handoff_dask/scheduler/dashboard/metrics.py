"""Metrics for Prometheus, on the scheduler's ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from handoff_dask.compat import dashboard as compat
from handoff_dask.scheduler.dashboard import overview

if TYPE_CHECKING:
    from handoff_dask.scheduler.plugin import HandoffPlugin

__all__ = ["Collector", "install"]


class Collector:
    """Reads metrics off a plugin.

    The process has one registry. Where it runs several schedulers, as tests do, the one that got
    the plugin last is shown, as for Dask's own metrics.
    """

    def __init__(self) -> None:
        self.plugins: list[HandoffPlugin] = []

    def describe(self) -> list[Any]:
        """Return no names: that spares the registry a look at the values when it registers us."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield the metrics of the moment."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        plugin = self.plugins[-1]
        name = compat.metric_name
        functions = GaugeMetricFamily(
            name("functions"), "Functions of the runs on the scheduler, by state", labels=["state"]
        )
        for state, count in overview.states(plugin).items():
            functions.add_metric([state], count)
        yield functions
        yield GaugeMetricFamily(name("runs"), "Runs on the scheduler", value=len(plugin.runs))
        yield CounterMetricFamily(
            name("retries"),
            "Attempts that ended and were not the first of their function",
            value=plugin.history.retries,
        )
        attempts = CounterMetricFamily(
            name("attempts"), "Attempts of functions that ended, by outcome", labels=["outcome"]
        )
        for outcome in overview.OUTCOMES:
            attempts.add_metric([outcome], plugin.history.outcomes[outcome])
        yield attempts
        total = overview.usage(plugin).total
        for what, text in (
            ("capacity", "What workers declare"),
            ("claims", "What is claimed of the workers, by functions and by tasks of others"),
            ("asked", "What held functions ask for"),
        ):
            gauge = GaugeMetricFamily(name(what), f"{text}, by resource", labels=["resource"])
            for resource, amounts in total.items():
                amount = {
                    "capacity": amounts.declared,
                    "claims": amounts.claimed,
                    "asked": amounts.asked,
                }[what]
                gauge.add_metric([resource], amount)
            yield gauge


#: The process's own: it is registered while it has a plugin.
COLLECTOR = Collector()


def install(plugin: HandoffPlugin, installed: ExitStack) -> None:
    """Add the metrics of a plugin, where there is prometheus_client."""
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        return
    if not COLLECTOR.plugins:
        REGISTRY.register(COLLECTOR)
    COLLECTOR.plugins.append(plugin)

    def remove() -> None:
        COLLECTOR.plugins.remove(plugin)
        if not COLLECTOR.plugins:
            REGISTRY.unregister(COLLECTOR)

    installed.callback(remove)
