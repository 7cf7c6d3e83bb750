"""Metrics for Prometheus, on the scheduler's ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from handoff_dask.compat import dashboard as compat
from handoff_dask.model.attempt import Outcome
from handoff_dask.scheduler.dashboard.overview import Overview

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)


class Collector:
    """Reads the metrics.

    The process has one registry. Where it runs several schedulers, as tests do, the latest that
    was installed on is shown, as for Dask's own metrics.
    """

    def __init__(self) -> None:
        self.overviews: list[Overview] = []

    def describe(self) -> list[Any]:
        """Return no names, so that the registry does not collect the values to learn them."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield the metrics of the moment."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        def family(kind: Any, name: str, text: str, label: str, values: Mapping[Any, float]) -> Any:
            metric = kind(compat.metric_name(name), text, labels=[label])
            for value, amount in values.items():
                metric.add_metric([value], amount)
            return metric

        overview = self.overviews[-1]
        history = overview.history
        total = overview.usage().total
        yield family(
            GaugeMetricFamily,
            "functions",
            "Functions of the runs on the scheduler, by state",
            "state",
            overview.states(),
        )
        yield GaugeMetricFamily(
            compat.metric_name("runs"), "Runs on the scheduler", value=len(overview.runs)
        )
        yield CounterMetricFamily(
            compat.metric_name("retries"),
            "Attempts that ended and were not the first of their function",
            value=history.retries,
        )
        yield family(
            CounterMetricFamily,
            "attempts",
            "Attempts of functions that ended, by the outcome that was recorded first",
            "outcome",
            {outcome: history.outcomes[outcome] for outcome in OUTCOMES},
        )
        yield family(
            CounterMetricFamily,
            "late_results",
            "Attempts whose result arrived later and was used, by the outcome recorded first",
            "outcome",
            {outcome: history.late_results[outcome] for outcome in OUTCOMES if outcome != "ok"},
        )
        yield CounterMetricFamily(
            compat.metric_name("cpu_seconds"),
            "Seconds that attempts that ended kept processors busy, as far as it was measured",
            value=history.cpu_seconds,
        )
        for name, attribute, text in (
            ("capacity", "declared", "What workers declare"),
            ("claims", "claimed", "What is claimed by functions and by tasks of others"),
            ("asked", "asked", "What held functions ask for"),
        ):
            amounts = {name: getattr(amounts, attribute) for name, amounts in total.items()}
            yield family(GaugeMetricFamily, name, f"{text}, by resource", "resource", amounts)


#: The process's own: it is registered while it has something to show.
COLLECTOR = Collector()


def install(overview: Overview) -> None:
    """Add the metrics, where there is prometheus_client."""
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        return
    if not COLLECTOR.overviews:
        REGISTRY.register(COLLECTOR)
    COLLECTOR.overviews.append(overview)

    def remove() -> None:
        COLLECTOR.overviews.remove(overview)
        if not COLLECTOR.overviews:
            REGISTRY.unregister(COLLECTOR)

    overview.history.shown.callback(remove)
