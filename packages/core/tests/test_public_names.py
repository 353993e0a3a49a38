"""What `import metaflow_artifacts` gives, and what it leaves alone until it is used."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import metaflow_artifacts

PUBLIC_MODULES = {"errors", "plugin", "testing"}


def test_every_public_name_is_there_and_listed() -> None:
    assert all(hasattr(metaflow_artifacts, name) for name in metaflow_artifacts.__all__)
    assert set(metaflow_artifacts.__all__) <= set(dir(metaflow_artifacts))
    listed = {name for name in dir(metaflow_artifacts) if not name.startswith("__")}
    assert listed == set(metaflow_artifacts.__all__)


def test_all_other_modules_are_private() -> None:
    modules = {module.name for module in pkgutil.iter_modules(metaflow_artifacts.__path__)}
    assert {name for name in modules if not name.startswith("_")} == PUBLIC_MODULES
    # Importing a module would put it in the place of a name.
    assert not modules & set(metaflow_artifacts.__all__)


def test_a_name_that_does_not_exist() -> None:
    assert not hasattr(metaflow_artifacts, "nothing_of_this_name")


def test_all_errors_are_public_names() -> None:
    assert set(metaflow_artifacts.errors.__all__) <= set(metaflow_artifacts.__all__)


def test_importing_is_light() -> None:
    code = "import sys, metaflow_artifacts; print(*sorted(m for m in sys.modules if 'metaflow' in m or 'boto' in m))"
    command = [sys.executable, "-I", "-c", code]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed.split() == ["metaflow_artifacts", "metaflow_artifacts._lazy"]


def test_the_module_of_errors_need_not_be_imported() -> None:
    code = "import metaflow_artifacts; print(metaflow_artifacts.errors.ArtifactError.__name__)"
    printed = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed == "ArtifactError\n"
