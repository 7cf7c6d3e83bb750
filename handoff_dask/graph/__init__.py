"""From a DAG to a Dask graph, and the DAG as a Dask collection."""
