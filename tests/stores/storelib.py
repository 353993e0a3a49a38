"""What the tests of artifact stores share besides fixtures."""

__all__ = ["SECRET"]

SECRET = "marker-2f61c08de5"
"""A secret key that only a config has, so that it can be searched for everywhere else."""
