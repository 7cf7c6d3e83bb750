"""A function's life on the scheduler: its states, its attempts, what follows a failure. Pure."""
