"""What our packages add to `import metaflow`, which every Metaflow process does.

.venv/bin/python benchmarks/imports.py [--runs 25]

It makes three environments in a temporary directory. They take turns, and the minimum of the runs is printed.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

from uv import find_uv_bin

PACKAGES = Path(__file__).resolve().parents[1] / "packages"
ENVIRONMENTS = {
    "all four packages": ["metaflow", "boto3", "huggingface_hub", *map(str, sorted(PACKAGES.iterdir()))],
    "the same dependencies, without our packages": ["metaflow", "boto3", "huggingface_hub"],
    "Metaflow and boto3 alone": ["metaflow", "boto3"],
}


def seconds(python: Path) -> float:
    """How long a process takes that imports Metaflow."""
    begin = time.perf_counter()
    subprocess.run([python, "-c", "import metaflow"], check=True, cwd=python.parent)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=25)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        pythons = {}
        for number, (name, requirements) in enumerate(ENVIRONMENTS.items()):
            environment = Path(directory, str(number))
            subprocess.run([find_uv_bin(), "venv", "-q", environment], check=True)
            pythons[name] = environment / "bin" / "python"
            install = [find_uv_bin(), "pip", "install", "-q", "--compile-bytecode", "--python", str(pythons[name])]
            subprocess.run([*install, *requirements], check=True)
        found: dict[str, list[float]] = {name: [] for name in pythons}
        for _ in range(options.runs):
            for name, python in pythons.items():
                found[name].append(seconds(python))
    for name, times in found.items():
        print(f"{name:45} {min(times):.3f} s")


if __name__ == "__main__":
    main()
