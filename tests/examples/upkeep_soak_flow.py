"""The upkeep flow of the examples, for a store whose savers renew chunks sooner than after a day."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "upkeep"))
import upkeep_flow

from metaflow_artifacts import Store, open_storage

upkeep_flow.configured_store = lambda root: Store(open_storage(root), refresh_after=float(os.environ["REFRESH_AFTER"]))

if __name__ == "__main__":
    upkeep_flow.UpkeepFlow()
