"""Every touch of Dask that is not public API. It knows nothing of Handoff."""
