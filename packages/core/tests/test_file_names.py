"""Names of files that processes with different encodings for them save and load, and paths with many directories."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from metaflow_artifacts import open_store
from metaflow_artifacts._transfer.removal import remove_tree

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
UTF8 = {"PYTHONUTF8": "1"}
NAMES = [b"plain", "é.bin".encode(), "日本/é".encode(), b"\xff.bin", b"\xff/\xe9"]
PROLOGUE = """
import json, os, sys
from metaflow_artifacts import open_store
assert sys.getfilesystemencoding() == {"C": "ascii"}.get(os.environ.get("LC_ALL"), "utf-8")
arguments = [os.fsdecode(bytes.fromhex(text)) for text in sys.argv[1:]]
store = open_store(arguments[0])
"""
SAVE = (
    PROLOGUE
    + """
_, directory, name = arguments
content = {name: b"of a mapping", "sub": directory}
print(json.dumps([store.save_model(source, "names")["key"] for source in (directory, f"{directory}/{name}", content)]))
"""
)
LOAD = (
    PROLOGUE
    + """
_, out, name, *keys = arguments
for number, key in enumerate(keys):
    store.load(key, f"{out}/{number}")
store.load(keys[0], f"{out}/only", only=[name])
print(json.dumps(store.read_file(keys[2], name).decode()))
"""
)


def run(code: str, encoding: dict[str, str], *arguments: bytes) -> object:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-c", code, *(argument.hex() for argument in arguments)],
        env={**environment, **encoding},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def tree(directory: bytes) -> dict[bytes, bytes]:
    found = {}
    for path, _, names in os.walk(directory):
        for name in names:
            location = os.path.join(path, name)
            found[os.path.relpath(location, directory)] = Path(os.fsdecode(location)).read_bytes()
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="the names are not names of files everywhere")
@pytest.mark.parametrize("loader", [UTF8, ASCII], ids=["utf-8", "ascii"])
@pytest.mark.parametrize("saver", [UTF8, ASCII], ids=["utf-8", "ascii"])
def test_a_name_has_the_same_bytes_for_every_process(
    tmp_path: Path, saver: dict[str, str], loader: dict[str, str]
) -> None:
    root, source, out = (os.fsencode(tmp_path / name) for name in ("store", "source", "out"))
    for number, name in enumerate(NAMES):
        location = os.path.join(source, name)
        os.makedirs(os.path.dirname(location), exist_ok=True)
        Path(os.fsdecode(location)).write_bytes(b"%d" % number)
    keys = run(SAVE, saver, root, source, NAMES[1])
    assert isinstance(keys, list)
    assert run(LOAD, loader, root, out, NAMES[1], *(key.encode() for key in keys)) == "of a mapping"
    everything = tree(source)
    assert set(everything) == set(NAMES)
    assert tree(out + b"/0") == everything
    assert tree(out + b"/1") == tree(out + b"/only") == {NAMES[1]: b"1"}
    sub = {b"sub/" + name: content for name, content in everything.items()}
    assert tree(out + b"/2") == {NAMES[1]: b"of a mapping", **sub}


def test_a_path_may_have_more_directories_than_python_nests_calls(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    # Relative, since the longest path that the system takes is not much longer.
    path = "d/" * (sys.getrecursionlimit() + 100) + "file"
    saved = store.save_model({path: b"first"}, "deep")
    again = store.save_model({path: b"second"}, "deep")
    try:
        for reference, content in ((saved, "first"), (again, "second")):
            store.load(reference, tmp_path / "out")
            assert (tmp_path / "out" / path).read_text() == content
    finally:
        remove_tree(str(tmp_path / "out"))  # pytest could not
