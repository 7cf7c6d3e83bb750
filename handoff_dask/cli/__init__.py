"""The command ``dask handoff``, for batch scripts."""

from handoff_dask.cli.app import handoff

__all__ = ["handoff"]
