"""`python -m metaflow_artifacts` is the command line."""

import sys

from metaflow_artifacts._cli import main

if __name__ == "__main__":
    sys.exit(main())
