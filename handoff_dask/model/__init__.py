"""The model: functions, DAGs, policies and records. It knows nothing of Dask."""
