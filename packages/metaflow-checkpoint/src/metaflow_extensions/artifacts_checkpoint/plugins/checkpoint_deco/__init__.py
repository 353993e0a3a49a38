"""`@checkpoint`: a task that is retried or run again resumes from what it saved."""
