"""What client, scheduler and worker tell each other."""
