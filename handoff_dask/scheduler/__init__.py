"""The scheduler's side: an adapter between Dask's scheduler and the decisions of the pure wings."""
