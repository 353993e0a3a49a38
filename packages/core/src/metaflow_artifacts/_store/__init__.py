"""The store: artifacts by key, and which checkpoint is the newest."""
