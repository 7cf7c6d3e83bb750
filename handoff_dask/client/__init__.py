"""The client's side: running DAGs, following them, and asking a cluster about them."""
