"""Run a notebook top to bottom with a real kernel, and keep the copy with its outputs.

Usage: python docs/run_notebook.py SOURCE TARGET
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal

#: Seconds that a notebook may take: several times as long as the slowest takes on two cores.
DEADLINE = 180


class NotebookError(Exception):
    """What is wrong with a notebook, in a line or a traceback."""


def run(source: Path, target: Path, seconds: float = DEADLINE) -> None:
    """Run a notebook in its own folder, and write the copy with its outputs.

    Parameters
    ----------
    source, target
        The notebook, and where to write the copy.
    seconds
        How long it may take.

    Raises
    ------
    NotebookError
        A cell fails, writes to standard error, or does not end in time.
    """
    notebook = nbformat.read(source, as_version=4)
    deadline = time.monotonic() + seconds
    at = 0

    def starts(cell: nbformat.NotebookNode, cell_index: int) -> None:
        nonlocal at
        at = cell_index

    client = NotebookClient(
        notebook,
        coalesce_streams=True,
        # Or every kernel starts with a word on encryption.
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": str(source.parent)}},
        timeout_func=lambda cell: max(1, int(deadline - time.monotonic())),
        on_cell_start=starts,
    )
    try:
        client.execute()
    except (CellControlSignal, RuntimeError) as error:
        raise NotebookError(f"{source}, cell {at + 1}: {error}") from None
    for number, cell in enumerate(notebook.cells, 1):
        for output in cell.get("outputs", ()):
            if output.output_type == "stream" and output.name == "stderr":
                raise NotebookError(f"{source}, cell {number}, on stderr: {output.text}")
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)


def main(source: str, target: str) -> int:
    """Run a notebook; return the exit code."""
    started = time.monotonic()
    try:
        run(Path(source), Path(target))
    except NotebookError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{source}: {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
