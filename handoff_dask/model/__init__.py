"""The model: functions, DAGs, retry policies and attempts. No Dask."""
