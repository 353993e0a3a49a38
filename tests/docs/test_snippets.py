"""Every Python snippet of the documentation, run as it stands: those of one page one after the other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "peer"))
from peer_store import recorded_store  # noqa: E402

PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("packages/*/README.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
]
HUB = ROOT / "packages" / "metaflow-hf" / "tests" / "hub.py"
REPOS = ("models/google-bert/bert-base-uncased", "models/openai-community/gpt2", "datasets/stanfordnlp/imdb")
OLD = "s3://old-bucket/metaflow"
"""Where a page has a store of metaflow-checkpoint."""
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def snippets(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where a reader would try things out: a directory with a model in it."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.txt").write_text("0.1 0.2")
    return tmp_path


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Hub on loopback that has the repos that the documentation names."""
    directory = tmp_path_factory.mktemp("hub")
    for repo in REPOS:
        (directory / repo).mkdir(parents=True)
        (directory / repo / "config.json").write_text("{}")
    server = subprocess.Popen([sys.executable, HUB, directory], stdout=subprocess.PIPE, text=True)
    with server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
        server.kill()


def run(home: Path, hub: str, *arguments: str) -> None:
    environment = {
        **os.environ,
        # @parallel starts its workers as the `python` that it finds there.
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
        "HF_ENDPOINT": hub,
        "HOME": str(home),
        "METAFLOW_USER": "reader",
        "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(home),
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "page", [page for page in PAGES if snippets(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_snippets_of_a_page_run(page: Path, home: Path, hub: str) -> None:
    scripts: list[str] = []
    if any(OLD in text for text in snippets(page)):
        recorded_store(home / "old")
    for number, text in enumerate(snippets(page)):
        # There is no bucket here: a directory takes its place.
        text = text.replace("s3://bucket/prefix", str(home / "bucket")).replace('type="s3"', 'type="local"')
        text = text.replace(OLD, str(home / "old" / ".metaflow"))
        if "FlowSpec" in text:
            flow = home / f"flow{number}.py"
            name = re.search(r"class (\w+)\(FlowSpec\)", text)
            assert name is not None
            main = "" if "__main__" in text else f'\nif __name__ == "__main__":\n    {name[1]}()\n'
            flow.write_text(text + main)
            run(home, hub, str(flow), "run")
        else:
            scripts.append(text)
    if scripts:
        # Later snippets of a page use the names of earlier ones.
        (home / "snippets.py").write_text("\n".join(scripts))
        run(home, hub, "snippets.py")
