"""What notebooks show of a result, a plan and what explains them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from handoff_dask.model.attempt import Attempt
from handoff_dask.widgets import markup
from handoff_dask.widgets.markup import OUTCOME_COLOURS, PLAIN, STATE_COLOURS, Html, seconds
from handoff_dask.widgets.timeline import Bar, draw

#: Rows of a table; what is left out is said.
MOST_ROWS = 50
#: A table of more rows than this is folded.
_OPEN = 20

Attempts = Mapping[Hashable, Sequence[Attempt]]


def attempt_bars(attempts: Attempts) -> tuple[dict[str, list[Bar]], float]:
    """Return the bars of each worker, and the seconds from the first start to the last stop."""
    everything = [(id_, a) for id_, tried in attempts.items() for a in tried]
    if not everything:
        return {}, 0.0
    origin = min(a.started for _, a in everything)
    rows: dict[str, list[Bar]] = {}
    titles: dict[str, str] = {}
    for id_, a in everything:
        name = markup.plain(id_)
        label = name if a.number == 1 else f"{name} #{a.number}"
        told = [f"{label}: {a.outcome}, {seconds(a.duration)}", f"on {a.worker_name} {a.worker}"]
        if a.cost:
            told.append(markup.cost(a.cost))
        if a.message:
            told.append(f"{a.error_type}: {a.message}")
        bar = Bar(
            label,
            a.started - origin,
            a.stopped - origin,
            OUTCOME_COLOURS[a.outcome],
            "\n".join(told),
        )
        rows.setdefault(a.worker, []).append(bar)
        titles[a.worker] = a.worker_name
    # Names are what people know; where two workers share one, the address tells them apart.
    names = list(titles.values())
    shown = {w: n if n and names.count(n) == 1 else w for w, n in titles.items()}
    rows = {shown[worker]: bars for worker, bars in rows.items()}
    rows = {name: rows[name] for name in sorted(rows, key=markup.natural)}
    return rows, max(bar.stop for bars in rows.values() for bar in bars)


def result(
    dag_id: Hashable,
    attempts: Attempts,
    errors: Mapping[Hashable, BaseException],
    makespan: float,
    functions: int,
) -> str:
    """Return the outcome of a run: a timeline by worker and a table."""
    rows, length = attempt_bars(attempts)
    summary = f"{markup.count(functions, 'function')}, {seconds(makespan)}"
    if rows:
        summary += f" on {markup.count(len(rows), 'worker')}"
    extra = sum(len(tried) - 1 for tried in attempts.values())
    if extra:
        summary += f", {extra:,} further attempts"
    if errors:
        summary += f", {len(errors):,} failed or not run"
    return markup.panel(
        f"Result of {markup.plain(dag_id)}",
        summary,
        draw(rows, length, OUTCOME_COLOURS),
        _attempt_table(attempts, errors),
    )


def _attempt_table(attempts: Attempts, errors: Mapping[Hashable, BaseException]) -> str:
    origin = min((a.started for tried in attempts.values() for a in tried), default=0.0)
    ids = list(dict.fromkeys([*attempts, *errors]))
    if not ids:
        return ""

    def urgency(id_: Hashable) -> tuple[bool, bool, float]:
        tried = attempts.get(id_, ())
        return id_ not in errors, len(tried) < 2, -sum(a.duration for a in tried)

    def start(id_: Hashable) -> float:
        return min((a.started for a in attempts.get(id_, ())), default=math.inf)

    few = len(ids) <= MOST_ROWS
    shown = sorted(ids, key=start) if few else sorted(ids, key=urgency)[:MOST_ROWS]
    rows = [_attempt_row(id_, attempts.get(id_, ()), errors.get(id_), origin) for id_ in shown]
    head = ("function", "worker", "attempts", "start", "duration", "outcome", "error")
    inner = markup.table(head, rows, "  rrr")
    if len(ids) > len(shown):
        rest = f"{len(ids) - len(shown):,} functions more; failed, retried and slow ones come first"
        inner = Html(inner + markup.note(rest))
    return markup.folded(markup.count(len(ids), "function"), inner, len(shown) <= _OPEN)


def _attempt_row(
    id_: Hashable, tried: Sequence[Attempt], error: BaseException | None, origin: float
) -> tuple[object, ...]:
    name = markup.escaped(id_, 80)
    why = "" if error is None else f"{type(error).__name__}: {error}"
    if not tried:
        return name, "", "0", "", "", markup.dot(STATE_COLOURS["cancelled"], "not run"), why
    last = tried[-1]
    failures = [f"{a.error_type}: {a.message}" for a in tried if a.message]
    return (
        name,
        last.worker_name or last.worker,
        f"{len(tried):,}",
        seconds(max(last.started - origin, 0.0)),
        seconds(last.duration),
        markup.dot(OUTCOME_COLOURS[last.outcome], last.outcome),
        why or (failures[-1] if failures else ""),
    )


def slot_bars(timeline: Mapping[str, Iterable[tuple[Hashable, float, float]]]) -> Any:
    """Return the bars of a plan by worker."""
    return {
        worker: [
            Bar(
                markup.plain(id_),
                start,
                stop,
                PLAIN,
                f"{markup.plain(id_)}: {seconds(start)} to {seconds(stop)}\n"
                f"takes {seconds(stop - start)} on {worker}",
            )
            for id_, start, stop in slots
        ]
        for worker, slots in timeline.items()
    }


def plan(
    makespan: float,
    timeline: Mapping[str, Sequence[tuple[Hashable, float, float]]],
    utilisation: Mapping[str, float],
) -> str:
    """Return how a DAG would run: a timeline, and what is used of workers and resources."""
    count = sum(map(len, timeline.values()))
    summary = (
        f"{markup.count(count, 'function')} on {markup.count(len(timeline), 'worker')}, "
        f"{seconds(makespan)}"
    )
    used = markup.table(
        ("resource", "used"),
        [(name, _gauge(share)) for name, share in utilisation.items()],
    )
    rows = []
    for worker, slots in timeline.items():
        busy = sum(stop - start for _, start, stop in slots)
        last = max((stop for _, _, stop in slots), default=0.0)
        rows.append((worker, f"{len(slots):,}", seconds(busy), seconds(last)))
    busiest = markup.table(("worker", "functions", "work", "last end"), rows[:MOST_ROWS], " rrr")
    if len(rows) > MOST_ROWS:
        busiest = Html(busiest + markup.note(f"{len(rows) - MOST_ROWS:,} workers more"))
    tables = _beside(used if utilisation else "", busiest)
    return markup.panel("Plan", summary, draw(slot_bars(timeline), makespan, {}), tables)


def _beside(*parts: str) -> Html:
    inner = "".join(f"<div>{part}</div>" for part in parts if part)
    return Html(
        f'<div style="display:flex;gap:28px;flex-wrap:wrap;align-items:flex-start">{inner}</div>'
    )


def _gauge(share: float) -> Html:
    """Return a share of 1 as a small bar."""
    return Html(
        '<div style="display:inline-block;width:90px;height:.7em;border-radius:3px;'
        'background:rgba(128,128,128,.25)">'
        f'<div style="width:{min(max(share, 0), 1):.1%};height:100%;border-radius:3px;'
        f'background:{PLAIN}"></div></div> {share:.1%}'
    )


class Verdict(NamedTuple):
    """One row of a report: the functions that share it, and the cells that say what is so."""

    ids: list[Hashable]
    cells: tuple[object, ...]


def verdicts(
    found: Mapping[Hashable, Any], cells: Callable[[Any], tuple[object, ...]]
) -> list[Verdict]:
    """Return a row for each distinct verdict, the most frequent first."""
    rows: dict[str, Verdict] = {}
    for id_, verdict in found.items():
        row = rows.get(text := str(verdict))
        if row is None:
            row = rows[text] = Verdict([], cells(verdict))
        row.ids.append(id_)
    return list(rows.values())


def report(
    title: str, summary: str, head: Sequence[str], rows: Sequence[Verdict], right: str = ""
) -> str:
    """Return a report of verdicts as a table."""
    if not rows:
        return markup.panel(title, summary)
    cells = [(markup.names(v.ids), f"{len(v.ids):,}", *v.cells) for v in rows[:MOST_ROWS]]
    inner = markup.table(("functions", "number", *head), cells, f" r{right}")
    if len(rows) > MOST_ROWS:
        rest = sum(len(v.ids) for v in rows[MOST_ROWS:])
        inner = Html(inner + markup.note(f"and {rest:,} functions more"))
    return markup.panel(title, summary, inner)


def yes_no(good: bool, word: str) -> Html:
    """Return a word in the colour of what is well or is not."""
    return markup.dot(OUTCOME_COLOURS["ok" if good else "error"], word)


def resources(pairs: Mapping[str, tuple[float, float]], second: str) -> str:
    """Return what is needed and, after the word `second`, what there is of each resource."""
    return "; ".join(
        f"{name}: {markup.number(needed)} needed, {second} {markup.number(there)}"
        for name, (needed, there) in pairs.items()
    )


def progress(
    dag_id: Hashable,
    counts: Mapping[str, int],
    held: Sequence[tuple[int, str, object, object]] = (),
    remark: str = "",
) -> str:
    """Return how far a run is, and what its functions are held for.

    Parameters
    ----------
    dag_id
        The DAG.
    counts
        Functions by state.
    held
        Of each kind of function that is held: how many, what they cost, why, and for what.
    remark
        What else is to be said.
    """
    total = sum(counts.values())
    stretch = "".join(
        f'<div title="{n:,} {state}" style="width:{n / total:.4%};background:{colour}"></div>'
        for state, colour in STATE_COLOURS.items()
        if (n := counts.get(state, 0))
    )
    bar = (
        '<div style="display:flex;height:14px;width:100%;max-width:600px;border-radius:4px;'
        f'overflow:hidden;background:rgba(128,128,128,.2)">{stretch}</div>'
    )
    words = "&ensp;".join(
        markup.dot(colour, f"{counts.get(state, 0):,} {state}")
        for state, colour in STATE_COLOURS.items()
        if counts.get(state, 0) or state == "done"
    )
    holds = ""
    if held:
        rows = [(f"{n:,}", *rest) for n, *rest in held[:MOST_ROWS]]
        holds = markup.table(("held", "cost", "for", "on"), rows, "r")
    done = counts.get("done", 0)
    summary = f"{done:,} of {markup.count(total, 'function')} done" if total else ""
    return markup.panel(
        f"Run of {markup.plain(dag_id)}",
        summary,
        bar + f'<div style="font-size:12px;margin-top:3px">{words}</div>',
        holds,
        markup.note(remark) if remark else "",
    )
