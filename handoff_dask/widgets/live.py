"""What keeps changing in a notebook while one looks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

#: Draws anew; the answer is the HTML, and whether it is the last one.
Draw = Callable[[], Awaitable[tuple[str, bool]]]

#: Seconds between two drawings at least; and how many times as long as the last one took.
PAUSE, SHARE = 0.5, 20.0

_following: set[asyncio.Task[None]] = set()


def bundle(
    html: str, text: str, draw: Callable[[], Draw | None], loop: asyncio.AbstractEventLoop
) -> dict[str, Any]:
    """Return what IPython displays of something that changes.

    Parameters
    ----------
    html, text
        How it looks now.
    draw
        Returns what draws it anew, or None once it is gone.
    loop
        Where it is drawn.

    Returns
    -------
    dict
        Nothing if ipywidgets is not there.
    """
    try:
        import ipywidgets
    except ImportError:
        return {}
    widget = ipywidgets.HTML(value=html)

    def start() -> None:
        task = asyncio.ensure_future(follow(widget, draw))
        _following.add(task)
        task.add_done_callback(_following.discard)

    loop.call_soon_threadsafe(start)
    shown: dict[str, Any] = dict(widget._repr_mimebundle_())
    return {**shown, "text/html": html, "text/plain": text}


async def follow(widget: Any, draw: Callable[[], Draw | None]) -> None:
    """Draw until there is nothing new to come, or the widget is closed."""
    pause = PAUSE
    while widget.comm is not None:
        # What is drawn must not be kept alive by being looked at: no name for it while waiting.
        await asyncio.sleep(pause)
        again = draw()
        if again is None or widget.comm is None:
            return
        begun = time.perf_counter()
        html, last = await again()
        del again
        if widget.comm is not None and widget.value != html:
            widget.value = html
        if last:
            return
        pause = max(PAUSE, SHARE * (time.perf_counter() - begun))
