"""What notebooks show of results, plans, explanations and runs in progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from handoff_dask.learning.advice import CodeAdvice
from handoff_dask.model.attempt import UNKNOWN, Attempt, count_earlier
from handoff_dask.widgets import markup
from handoff_dask.widgets.markup import OUTCOME_COLOURS, PLAIN, STATE_COLOURS, Html, seconds
from handoff_dask.widgets.timeline import Bar, draw

#: Rows of a table at most; a note says how many are left out.
MOST_ROWS = 50
#: A table of more rows than this is folded.
_OPEN = 20

Attempts = Mapping[Hashable, Sequence[Attempt]]


def attempt_bars(attempts: Attempts) -> tuple[dict[str, list[Bar]], float]:
    """Return the bars of each worker, and the seconds from the first start to the last stop."""
    everything = [(id_, a) for id_, tried in attempts.items() for a in tried if not a.earlier]
    if not everything:
        return {}, 0.0
    origin = min(a.started for _, a in everything)
    rows: dict[str, list[Bar]] = {}
    titles: dict[str, str] = {}
    for id_, a in everything:
        name = markup.plain(id_)
        label = name if a.number == 1 else f"{name} #{a.number}"
        head = f"{label}: {a.outcome}, {seconds(a.duration)}"
        tooltip = [head, f"on {a.worker_name} {a.worker}"]
        tooltip += filter(None, [markup.cost(a.cost), markup.usage(a.usage)])
        if a.message:
            tooltip.append(f"{a.error_type}: {a.message}")
        bar = Bar(
            label,
            a.started - origin,
            a.stopped - origin,
            OUTCOME_COLOURS[a.outcome],
            "\n".join(tooltip),
        )
        rows.setdefault(a.worker, []).append(bar)
        titles[a.worker] = a.worker_name
    # Workers go by their names. Those that share a name go by their addresses.
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
    stored = count_earlier(attempts)
    if stored:
        summary += f", {stored:,} from the store"
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
    begun = [a.started for tried in attempts.values() for a in tried if not a.earlier]
    origin = min(begun, default=0.0)
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
    used = tuple(markup.used_by(UNKNOWN))
    head = ("function", "worker", "attempts", "start", "duration", *used, "outcome", "error")
    # A run that measured nothing has no columns for it.
    columns = [i for i, name in enumerate(head) if name not in used or any(row[i] for row in rows)]
    remark = ""
    if len(ids) > len(shown):
        rest = f"{len(ids) - len(shown):,} functions more"
        remark = f"{rest}; failed, retried and slow ones come first"
    inner = markup.table(
        [head[i] for i in columns],
        [[row[i] for i in columns] for row in rows],
        "  " + "r" * (len(columns) - 4),
        remark,
    )
    title, opened = markup.count(len(ids), "function"), len(shown) <= _OPEN
    return markup.render("folded", title=title, inner=inner, opened=opened)


def _attempt_row(
    id_: Hashable, tried: Sequence[Attempt], error: BaseException | None, origin: float
) -> tuple[object, ...]:
    name = markup.escaped(id_, 80)
    why = "" if error is None else f"{type(error).__name__}: {error}"
    if not tried:
        outcome = markup.dot(STATE_COLOURS["cancelled"], "not run")
        return name, "", "0", "", "", *markup.used_by(UNKNOWN).values(), outcome, why
    last = tried[-1]
    failures = [f"{a.error_type}: {a.message}" for a in tried if a.error_type]
    return (
        name,
        last.worker_name or last.worker,
        f"{len(tried):,}",
        "" if last.earlier else seconds(max(last.started - origin, 0.0)),
        seconds(last.duration),
        *markup.used_by(last.usage).values(),
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
    """Return a plan: its timeline, and how much resources and workers are used."""
    count = sum(map(len, timeline.values()))
    summary = (
        f"{markup.count(count, 'function')} on {markup.count(len(timeline), 'worker')}, "
        f"{seconds(makespan)}"
    )
    used = markup.table(
        ("resource", "used"), [(name, _gauge(share)) for name, share in utilisation.items()]
    )
    rows = []
    for worker, slots in timeline.items():
        busy = sum(stop - start for _, start, stop in slots)
        last = max((stop for _, _, stop in slots), default=0.0)
        rows.append((worker, f"{len(slots):,}", seconds(busy), seconds(last)))
    rest = f"{len(rows) - MOST_ROWS:,} workers more" if len(rows) > MOST_ROWS else ""
    head = ("worker", "functions", "work", "last end")
    busiest = markup.table(head, rows[:MOST_ROWS], " rrr", rest)
    tables = markup.render("beside", parts=(used if utilisation else "", busiest))
    return markup.panel("Plan", summary, draw(slot_bars(timeline), makespan, {}), tables)


def _gauge(share: float) -> Html:
    """Return a share of 1 as a small bar."""
    width = f"{min(max(share, 0), 1):.1%}"
    return markup.render("gauge", width=width, text=f"{share:.1%}", colour=PLAIN)


class Verdict(NamedTuple):
    """One row of a report: the functions that share it, and its cells."""

    ids: list[Hashable]
    cells: tuple[object, ...]


def verdicts(
    findings: Mapping[Hashable, Any], cells: Callable[[Any], tuple[object, ...]]
) -> list[Verdict]:
    """Return a row for each distinct verdict, in the order of their first functions."""
    rows: dict[str, Verdict] = {}
    for id_, verdict in findings.items():
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
    rest = sum(len(v.ids) for v in rows[MOST_ROWS:])
    remark = f"and {rest:,} functions more" if rest else ""
    inner = markup.table(("functions", "number", *head), cells, f" r{right}", remark)
    return markup.panel(title, summary, inner)


def advice_table(rows: Sequence[CodeAdvice]) -> list[tuple[str, ...]]:
    """Return what functions declared, used and should declare, by code, below a head."""
    memory = ("declared MB", "median", "95 %", "most", "advised MB")
    table: list[tuple[str, ...]] = [
        ("code", "attempts", *memory, "declared cpu", "used", "advised cpu")
    ]
    for row in rows:
        spread = row.memory or (None, None, None)
        cells = (
            row.declared.get("memory"),
            *spread,
            row.advised.get("memory"),
            row.declared.get("cpu"),
            row.cores,
            row.advised.get("cpu"),
        )
        table.append((row.code, f"{row.count:,}", *map(_figure, cells)))
    return table


def _figure(value: Any) -> str:
    if not isinstance(value, int | float):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def advice(rows: Sequence[CodeAdvice], summary: str) -> str:
    """Return what functions should declare, as a table."""
    head, *body = advice_table(rows[:MOST_ROWS])
    rest = f"{len(rows) - MOST_ROWS:,} codes more" if len(rows) > MOST_ROWS else ""
    return markup.panel("Advice", summary, markup.table(head, body, " " + "r" * 9, rest))


def yes_no(good: bool, word: str) -> Html:
    """Return a word with the colour of success or failure before it."""
    return markup.dot(OUTCOME_COLOURS["ok" if good else "error"], word)


def resources(pairs: Mapping[str, tuple[float, float]], second: str) -> str:
    """List how much of each resource is needed and, after the word `second`, available."""
    return "; ".join(
        f"{name}: {markup.number(needed)} needed, {second} {markup.number(available)}"
        for name, (needed, available) in pairs.items()
    )


def progress(
    dag_id: Hashable,
    counts: Mapping[str, int],
    held: Sequence[tuple[int, str, object, object]] = (),
    remark: str = "",
) -> str:
    """Return the progress of a run, by its functions' states, and what they are held for.

    For each kind of held function: how many, what one costs, what they wait for, and where.
    """
    total = sum(counts.values())
    shown = {state: counts.get(state, 0) for state in STATE_COLOURS}
    stretches = [
        (f"{n:,} {state}", f"{n / total:.4%}", STATE_COLOURS[state])
        for state, n in shown.items()
        if n
    ]
    legend = {
        f"{n:,} {state}": STATE_COLOURS[state] for state, n in shown.items() if n or state == "done"
    }
    rows = [(f"{n:,}", *rest) for n, *rest in held[:MOST_ROWS]]
    summary = f"{shown['done']:,} of {markup.count(total, 'function')} done" if total else ""
    if shown["stored"]:
        summary += f", {shown['stored']:,} stored"
    return markup.panel(
        f"Run of {markup.plain(dag_id)}",
        summary,
        markup.render("bar", stretches=stretches) + markup.legend(legend),
        markup.table(("held", "cost", "for", "on"), rows, "r") if rows else "",
        markup.note(remark) if remark else "",
    )
