"""The worker's side: the task around the user's code, and the plugins of workers and nannies."""
