"""Parts of the fault suite that are no tests."""
