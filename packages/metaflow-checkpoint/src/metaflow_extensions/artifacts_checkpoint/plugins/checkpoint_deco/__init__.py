"""`@checkpoint`: a task that is retried, or run again, goes on from what it saved."""
