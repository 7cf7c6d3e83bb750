"""The worker's side: what runs around the user's code, and what speaks for the worker."""
