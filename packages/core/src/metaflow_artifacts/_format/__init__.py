"""The format: references, keys, manifests, and where content is cut. No input or output."""
