"""`metaflow-artifacts` and `python -m metaflow_artifacts` are the command line."""

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command that the arguments of the process name, and return its exit code."""
    try:
        # Ctrl-C may come while it is imported.
        from metaflow_artifacts._cli import main as run_command
    except KeyboardInterrupt:
        print("metaflow-artifacts: interrupted", file=sys.stderr)
        return 130
    return run_command()


if __name__ == "__main__":
    sys.exit(main())
