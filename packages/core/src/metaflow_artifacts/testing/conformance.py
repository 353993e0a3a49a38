"""What every storage backend must do, as tests: a backend's own tests subclass `StorageConformance`.

```python
class TestMyStorage(StorageConformance):
    @pytest.fixture
    def storage(self, tmp_path):
        return MyStorage(tmp_path)

    def raw_put(self, storage, key, data): ...
    def raw_get(self, storage, key): ...
    def raw_keys(self, storage): ...
    def reopen(self, storage): ...
```

The raw hooks reach the objects past the backend, so that a fault in writing cannot hide behind the same fault in
reading. The tests need nothing but an empty storage each, and no order. A promise that a server is known to break is
named in the class's `broken`: its tests run, and must fail.
"""

from __future__ import annotations

from metaflow_artifacts.testing._suite_names import HOSTILE_KEYS, ODD_KEYS, NameTests, RefusalTests
from metaflow_artifacts.testing._suite_objects import ObjectTests
from metaflow_artifacts.testing._suite_races import RaceTests

__all__ = ["HOSTILE_KEYS", "ODD_KEYS", "ServerConformance", "StorageConformance"]


class ServerConformance(ObjectTests, NameTests, RaceTests):
    """What a server has a part in: for one more server of a kind that `StorageConformance` tests already."""


class StorageConformance(ServerConformance, RefusalTests):
    """Subclass it, give the fixture and the hooks of `Suite`, and run it under pytest."""
