"""What `import metaflow_artifacts` gives, and what it leaves alone until it is used."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import metaflow_artifacts


def test_every_public_name_is_there_and_is_no_module() -> None:
    modules = {module.name for module in pkgutil.iter_modules(metaflow_artifacts.__path__)}
    for module in sorted(modules - {"mf", "testing"}):
        importlib.import_module(f"metaflow_artifacts.{module}")
    assert not modules & set(metaflow_artifacts.__all__)
    assert all(hasattr(metaflow_artifacts, name) for name in metaflow_artifacts.__all__)


def test_a_name_that_does_not_exist() -> None:
    assert not hasattr(metaflow_artifacts, "nothing_of_this_name")


def test_importing_is_light() -> None:
    code = "import sys, metaflow_artifacts; print(*sorted(m for m in sys.modules if 'metaflow' in m or 'boto' in m))"
    command = [sys.executable, "-I", "-c", code]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed.split() == ["metaflow_artifacts", "metaflow_artifacts.errors"]
