"""Every use of Dask that is not public API. This wing knows nothing about Handoff."""
