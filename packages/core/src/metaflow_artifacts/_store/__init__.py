"""The store: saving and loading artifacts by key, numbering checkpoints, and finding the newest."""
