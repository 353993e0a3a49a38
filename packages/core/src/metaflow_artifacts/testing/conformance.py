"""The conformance suite of storage backends: the tests of a backend subclass `StorageConformance`.

```python
class TestMyStorage(StorageConformance):
    @pytest.fixture
    def storage(self, tmp_path):
        return MyStorage(tmp_path)

    def beside(self, storage): ...
    def raw_put(self, storage, key, data): ...
    def raw_get(self, storage, key): ...
    def raw_keys(self, storage): ...
    def reopen(self, storage): ...
```

The raw hooks reach the objects without the backend, so that a bug in writing cannot hide behind the same bug in
reading. Each test needs an empty storage; the tests may run in any order. Tests of a promise that a server is known to
break are named in the class's `broken`: they run, and must fail.
"""

from __future__ import annotations

from metaflow_artifacts.testing._suite_names import HOSTILE_KEYS, ODD_KEYS, NameTests, RefusalTests
from metaflow_artifacts.testing._suite_objects import ObjectTests
from metaflow_artifacts.testing._suite_races import RaceTests

__all__ = ["HOSTILE_KEYS", "ODD_KEYS", "ServerConformance", "StorageConformance"]


class ServerConformance(ObjectTests, NameTests, RaceTests):
    """The tests that depend on the server: for a further server of a kind that `StorageConformance` tests already."""


class StorageConformance(ServerConformance, RefusalTests):
    """All tests. Subclass it, implement the fixture and the hooks of `Suite`, and run it with pytest."""
