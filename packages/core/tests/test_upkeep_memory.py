"""How much memory gc and `check --read` take in a large store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "upkeep.py"


@pytest.mark.long
def test_a_million_chunks_take_less_than_200_mib(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(BENCHMARK), "--chunks", "1000000"]
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in output.splitlines()]
    assert [row["found"] for row in rows] == [
        "500000 chunks, 0 problems",
        "500000 of 1000000 chunks",
        "500000 of 1000000 chunks",
    ]
    assert max(row["peak MiB"] for row in rows) < 200, output
