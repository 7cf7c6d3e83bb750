"""Processes in which isolated functions run. No Dask, so that they stay light."""
