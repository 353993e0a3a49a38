"""Lets metaflow-checkpoint 0.2.14 store an artifact of every kind, and writes down what each of them holds.

It runs where that package is installed, and uses nothing but Metaflow. Without the cards of checkpoints, whose threads
sometimes fail a task. EXPECTED is the file to write: for each artifact
the reference, and the SHA-256 of each file. No network is needed: what would come from the Hub is made here.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from metaflow import Checkpoint, FlowSpec, Task, checkpoint, current, huggingface_hub, model, retry, step

from metaflow_extensions.obcheckpoint.plugins.machine_learning_utilities.hf_hub import decorator as hub

LARGE = int(os.environ.get("LARGE_BYTES", "0"))
EARLIER = "earlier.json"


def content(name, size=40):
    """Bytes that depend on the name alone."""
    block = hashlib.sha256(name.encode()).digest()
    return (block * (size // len(block) + 1))[:size]


def write(directory, *paths, size=40):
    """Files of these paths; the directory as a string."""
    for path in paths:
        file = Path(directory, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content(f"{directory}/{path}", size))
    return str(directory)


def files_of(path):
    """What a load should give."""
    path = Path(path)
    found = [path] if path.is_file() else [one for one in sorted(path.rglob("*")) if one.is_file()]
    # A link to a directory is not followed by rglob.
    linked = [below for one in path.rglob("*") if one.is_symlink() and one.is_dir() for below in one.iterdir()]
    above = path.parent if path.is_file() else path
    return {
        str(one.relative_to(above)): hashlib.sha256(one.read_bytes()).hexdigest() for one in [*found, *linked] if found
    }


def download(**arguments):
    """In place of a download from the Hub."""
    directory = Path(arguments["local_dir"])
    (directory / "onnx").mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"repo": arguments["repo_id"]}))
    (directory / "onnx" / "model.bin").write_bytes(content(arguments["repo_id"]))


hub.download_model_from_huggingface = download


def entry(kind, reference, path):
    return {"kind": kind, "reference": reference, "files": files_of(path)}


def snapshot(scope, **arguments):
    reference = current.huggingface_hub.snapshot_download(repo_id=f"org/{scope}", **arguments)
    download(local_dir=f"snapshots/{scope}", repo_id=f"org/{scope}")
    return entry(f"snapshot: {scope}", reference, f"snapshots/{scope}")


class StoreFlow(FlowSpec):
    @model
    @step
    def start(self):
        save = current.model.save
        write("one", "weights.bin", "sub/deep/config.json", "__init__.py")
        Path("one/empty").mkdir()
        Path("one/__init__.py").write_bytes(b"")
        Path("one/run.sh").write_text("true\n")
        Path("one/run.sh").chmod(0o755)
        write("file", "weights.bin")
        Path("nothing").mkdir()
        write("links", "blobs/a", "snapshot/real")
        Path("links/snapshot/a").symlink_to("../blobs/a")
        Path("links/hard").hardlink_to("links/blobs/a")
        Path("links/latest").symlink_to("snapshot")
        write("names", "ä ö/ü.bin", "x" * 90 + "/" + "y" * 90 + "/" + "z" * 90)
        write("large", "weights.bin", size=LARGE or 300)
        self.saved = [
            entry("model: directory, tar", save("one", label="dir", metadata={"loss": 0.5, "n": [1, 2]}), "one"),
            entry("model: directory, files", save("one", label="dir", storage_format="files"), "one"),
            entry("model: file, tar", save("file/weights.bin"), "file/weights.bin"),
            entry("model: file, files", save("file/weights.bin", storage_format="files"), "file/weights.bin"),
            entry("model: spaces in the label", save("one", label="my model"), "one"),
            entry("model: slash in the label", save("one", label="a/b", storage_format="files"), "one"),
            entry("model: empty, tar", save("nothing", label="empty"), "nothing"),
            entry("model: empty, files", save("nothing", label="empty", storage_format="files"), "nothing"),
            entry("model: links, tar", save("links", label="links"), "links"),
            entry("model: odd names, tar", save("names", label="names"), "names"),
            entry("model: large, tar", save("large", label="large"), "large"),
            entry("model: large, files", save("large", label="large", storage_format="files"), "large"),
        ]
        self.next(self.train)

    @retry(times=1, minutes_between_retries=0)
    @checkpoint(show_card=False)
    @step
    def train(self):
        save = current.checkpoint.save
        attempt = current.retry_count
        found = json.loads(Path(EARLIER).read_text()) if attempt else []
        path = write(f"train{attempt}", "weights.bin", "state/step.json")
        found.append(entry(f"checkpoint: attempt {attempt}", save(path, metadata={"epoch": attempt}), path))
        found.append(entry(f"checkpoint: attempt {attempt}, tar", save(path, storage_format="tar"), path))
        found.append(entry(f"checkpoint: attempt {attempt}, best", save(path, "best", latest=False), path))
        if not attempt:
            file = write("single", "weights.bin") + "/weights.bin"
            found.append(entry("checkpoint: file", save(file, name="single"), file))
            Path(EARLIER).write_text(json.dumps(found))
            raise RuntimeError("the first attempt fails")
        rank = write("rank", "shard.bin")
        code = "import json; from metaflow import Checkpoint; print(json.dumps(Checkpoint().save('rank', name='rank')))"
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
        found.append(entry("checkpoint: subprocess", json.loads(done.stdout.splitlines()[-1]), rank))
        found.append(entry("checkpoint: not latest", save(path, "best", latest=False), path))
        self.saved += found
        self.folds = [1, 2]
        self.next(self.fold, foreach="folds")

    @checkpoint(show_card=False)
    @step
    def fold(self):
        path = write(f"fold{self.input}", "weights.bin")
        self.fold_saved = entry(f"checkpoint: fold {self.input}", current.checkpoint.save(path), path)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.saved = inputs[0].saved + [one.fold_saved for one in inputs]
        self.next(self.hub_step)

    @huggingface_hub
    @step
    def hub_step(self):
        self.saved += [snapshot("checkpoint")]
        self.next(self.hub_flow)

    @huggingface_hub(cache_scope="flow")
    @step
    def hub_flow(self):
        self.saved += [snapshot("flow", revision="main")]
        self.next(self.hub_global)

    @huggingface_hub(cache_scope="global")
    @step
    def hub_global(self):
        self.saved += [snapshot("global")]
        self.next(self.end)

    @step
    def end(self):
        task = Task(next(one for one in self.saved if one["kind"] == "checkpoint: attempt 1")["reference"]["pathspec"])
        listed = {"task": task.pathspec, "keys": [one["key"] for one in Checkpoint().list(task=task)]}
        Path(os.environ["EXPECTED"]).write_text(json.dumps({"saved": self.saved, "listed": listed}, indent=1) + "\n")


if __name__ == "__main__":
    StoreFlow()
