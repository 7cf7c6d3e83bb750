"""Placement: which function runs where, and when. No Dask, no clock, no I/O."""
