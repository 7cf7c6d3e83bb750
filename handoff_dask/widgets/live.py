"""Output that changes in a notebook while it is on display."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

#: Returns the current HTML, and whether it is final.
Draw = Callable[[], Awaitable[tuple[str, bool]]]

#: Least time between two drawings: in seconds, and as a multiple of what the last one took.
PAUSE, SHARE = 0.5, 20.0

_following: set[asyncio.Task[None]] = set()


def bundle(
    html: str, text: str, draw: Callable[[], Draw | None], loop: asyncio.AbstractEventLoop
) -> dict[str, Any]:
    """Return a MIME bundle that changes while IPython displays it; empty without ipywidgets.

    Its current content is `html` and `text`. `draw` is called on the loop; it returns a function
    that draws the content anew, or None once that is gone.
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
    """Draw until the content is final or the widget is closed."""
    pause = PAUSE
    while widget.comm is not None:
        # No name refers to what is drawn while this waits: displaying it must not keep it alive.
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
