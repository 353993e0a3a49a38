"""Writes down what the decorators' distributions give to users: names, arguments, properties, what calls lead to.

It runs where metaflow-checkpoint is installed, and where these packages are: it imports nothing but the standard
library and Metaflow. PROBE_OUTPUT is the file to write, HF_ENDPOINT a Hub that has the repo org/tiny.
"""

import functools
import inspect
import json
import os
import pickle
from collections import defaultdict
from datetime import datetime
from pathlib import Path

import metaflow
from metaflow import (
    Checkpoint,
    FlowSpec,
    Task,
    checkpoint,
    current,
    delete_model,
    huggingface_hub,
    load_model,
    model,
    retry,
    step,
)
from metaflow.cards import get_cards
from metaflow.plugins import DATASTORES
from metaflow.plugins.cards.exception import CardNotPresentException

PLAIN = (bool, dict, float, int, list, str, type(None))
PROTOCOLS = {
    "__getitem__": "[name]",
    "__contains__": "name in …",
    "__iter__": "for name in …",
    "__len__": "len(…)",
    "__enter__": "with … as …",
}
BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
REPO = "org/tiny"


def kind_of(value):
    """The type of a value that JSON can hold; `object` for any other."""
    return type(value).__name__ if type(value) in PLAIN else "object"


def describe_call(name, call):
    """A fact of the call, and one of each argument; positions count from 1."""
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except ValueError:
        # Some of what is built into Python says nothing of its arguments.
        parameters = []
    kinds = [parameter.kind for parameter in parameters]
    rest = kinds.index(inspect.Parameter.VAR_POSITIONAL) + 1 if inspect.Parameter.VAR_POSITIONAL in kinds else None
    facts = {name: {"is": "call", "rest": rest, "any keyword": inspect.Parameter.VAR_KEYWORD in kinds}}
    for position, parameter in enumerate(parameters, 1):
        if parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            facts[f"{name}({parameter.name})"] = {
                "position": position if parameter.kind in BY_POSITION else None,
                "optional": parameter.default is not inspect.Parameter.empty,
            }
    return facts


def describe(value):
    """Facts of an object's public attributes, of their arguments, and of the operators that it takes."""
    fields = [name for name in value if hasattr(value, name)] if isinstance(value, dict) else []
    facts = {}
    for name in sorted({*dir(value), *fields}):
        if name in PROTOCOLS:
            facts[PROTOCOLS[name]] = {"is": "operator"}
        if name.startswith("_"):
            continue
        attribute = getattr(value, name)
        facts.update(describe_call(name, attribute) if callable(attribute) else {name: {"is": kind_of(attribute)}})
    return facts


def describe_reference(reference):
    return {name: {"is": kind_of(value)} for name, value in sorted(reference.items())}


def describe_names():
    """What extensions add to `metaflow`, and the arguments of decorators and functions."""
    found = defaultdict(dict)
    for name, value in sorted(vars(metaflow).items()):
        decorator = value.args[0] if isinstance(value, functools.partial) and value.args else None
        added = value if decorator is None else decorator
        if name.startswith("_") or not getattr(added, "__module__", "").startswith("metaflow_extensions."):
            continue
        if decorator is not None:
            found["from metaflow import …"][name] = {"is": "decorator"}
            found[f"@{name}"] = {argument: {"default": default} for argument, default in decorator.defaults.items()}
        else:
            found["from metaflow import …"].update(describe_call(name, value))
    for kind in sorted(one.TYPE for one in DATASTORES if one.__module__.startswith("metaflow_extensions.")):
        found["What Metaflow gets besides"][f"--datastore {kind}"] = {"is": "datastore"}
    return found


def write(path, text=""):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


def files(directory):
    return sorted(os.listdir(directory))


def said(reference):
    return [reference["name"], reference["metadata"]]


def attempts(references):
    return sorted({str(reference["attempt"]) for reference in references})


def is_falling(numbers):
    return numbers == sorted(numbers, reverse=True)


def errors_of(error):
    """The classes of Python's own that an `except` can name, the nearest first."""
    return [
        kind.__name__ for kind in type(error).__mro__ if issubclass(kind, Exception) and kind.__module__ == "builtins"
    ]


def outcomes(calls):
    """What each of the calls gives, with its text."""
    found = {}
    for text, call in calls:
        try:
            found[text] = {"gives": call()}
        except Exception as error:
            found[text] = {"raises": errors_of(error)}
    return found


def saves():
    save, outside = current.checkpoint.save, Checkpoint().save
    write("state/one", "1")
    yield "save()", lambda: said(save())
    yield "save(path, 'best', {'loss': 1}, True)", lambda: said(save("state", "best", {"loss": 1}, True))
    yield "save(path, 'best', metadata={'loss': 1})", lambda: said(save("state", "best", metadata={"loss": 1}))
    yield (
        "save(path, metadata={'loss': 1}, latest=False)",
        lambda: said(save("state", metadata={"loss": 1}, latest=False)),
    )
    yield "save(Path(path))", lambda: said(save(Path("state")))
    yield "save(path, storage_format='tar')", lambda: said(save("state", storage_format="tar"))
    yield "save(path, metadata={'pair': (1, 2)})", lambda: said(save("state", metadata={"pair": (1, 2)}))
    yield (
        "save(path, metadata={'thing': object()})",
        lambda: sorted(save("state", metadata={"thing": object()})["metadata"]),
    )
    yield "save(path of nothing)", lambda: said(save("nothing"))
    yield (
        "Checkpoint().save(path, {'loss': 1}, True, 'best')",
        lambda: said(outside("state", {"loss": 1}, True, "best")),
    )
    yield "Checkpoint().save(path, name='best')", lambda: said(outside("state", name="best"))
    yield "Checkpoint().save()", lambda: said(outside())
    yield "reference['size'], of a file of 1 byte", lambda: save("state/one")["size"]
    yield "reference['size'], of a directory with it", lambda: save("state")["size"]
    yield (
        "reference['url'] ends with its key",
        lambda: (lambda one: one["url"].endswith("/" + one["key"]))(save("state")),
    )
    yield "datetime.now() - datetime.fromisoformat(reference['created_on'])", lambda: age_of(save("state"))


def age_of(reference):
    return (datetime.now() - datetime.fromisoformat(reference["created_on"])).days


def loads():
    cp = current.checkpoint
    reference, single = cp.save("state"), cp.save("state/one")
    for name in ("d", "e"):
        write(f"{name}/other")
    yield "load(reference)", lambda: kind_of(cp.load(reference))
    yield "load(reference, path), files", lambda: [cp.load(reference, "a"), files("a")][1]
    yield "load(key, path), files", lambda: [cp.load(reference["key"], "b"), files("b")][1]
    yield "load(info, path), files", lambda: [cp.load(cp.info, "c"), files("c")][1]
    yield "load(reference, path) where there are files", lambda: [cp.load(reference, "d"), files("d")][1]
    yield "load(reference of a file, path), files", lambda: [cp.load(single, "e"), files("e")][1]
    write(os.path.join(cp.directory, "other"))
    yield "load(reference) where there are files", lambda: [cp.load(reference), files(cp.directory)][1]
    before = cp.directory
    yield (
        "load(reference), whether directory has another path then",
        lambda: [cp.load(reference), cp.directory != before][1],
    )
    yield "load(key of nothing, path)", lambda: cp.load(reference["key"] + "0", "f")
    yield "load(None, path)", lambda: cp.load(None, "f")

    def in_a_block():
        with Checkpoint() as inside:
            write(os.path.join(inside.directory, "other"))
            inside.load(reference)
            return files(inside.directory)

    yield "with Checkpoint() as cp: cp.load(reference), where there are files", in_a_block
    yield "Checkpoint().load(reference)", lambda: Checkpoint().load(reference)
    yield "Checkpoint().directory", lambda: Checkpoint().directory
    yield "Checkpoint(init_dir=True).directory", lambda: kind_of(Checkpoint(init_dir=True).directory)
    yield "info.name, where 'first' was saved, then 'second' with latest=False", lambda: cp.info.name
    yield "pickle.loads(pickle.dumps(info)).name", lambda: pickle.loads(pickle.dumps(cp.info)).name


def lists():
    cp, outside = current.checkpoint, Checkpoint()
    newest = cp.save("state", "newest")
    yield "list()[0]", lambda: cp.list()[0] == newest
    yield "list('newest')", lambda: [said(one) for one in cp.list("newest")]
    yield "list(name='no such')", lambda: cp.list(name="no such")
    yield "list(), of which attempts", lambda: attempts(cp.list())
    yield "list(), later attempts first", lambda: is_falling([int(one["attempt"]) for one in cp.list()])
    yield "list(attempt=0), numbers", lambda: [one["version_id"] for one in cp.list(attempt=0)]
    yield "list(attempt='0'), numbers", lambda: [one["version_id"] for one in cp.list(attempt="0")]
    yield "list(full_namespace=True), of which attempts", lambda: attempts(cp.list(full_namespace=True))
    yield "list(task=pathspec of this task), of which attempts", lambda: attempts(cp.list(task=current.pathspec))
    yield (
        "list(task=pathspec, attempt=0), of which attempts",
        lambda: attempts(cp.list(task=current.pathspec, attempt=0)),
    )
    yield "Checkpoint().list(), of which attempts", lambda: attempts(outside.list())
    yield "Checkpoint().list(as_dict=False)[0].name", lambda: outside.list(as_dict=False)[0].name
    yield "Checkpoint().generate_key('best')", lambda: kind_of(outside.generate_key("best"))
    yield "save(path, '')", lambda: said(cp.save("state", ""))


def models():
    save, load = current.model.save, current.model.load
    write("model/weights", "1")
    saved, single = save("model", "classifier", {"accuracy": 1}, "files"), save("model/weights")
    write("k/other")
    yield "save(path, 'classifier', {'accuracy': 1}, 'files'), label", lambda: saved["label"]
    yield "save(path, 'classifier', {'accuracy': 1}, 'files'), metadata", lambda: saved["metadata"]
    yield "save(path, 'classifier'), the last part of its key", lambda: saved["key"].split("/")[-1].split("_")[0]
    yield "save(path), label", lambda: single["label"]
    yield "save(path), metadata", lambda: single["metadata"]
    yield "save(path, label='')", lambda: save("model", label="")["label"]
    yield "save(path of nothing)", lambda: kind_of(save("nothing"))
    yield "reference['size'], of a file of 1 byte", lambda: single["size"]
    yield "load(reference), files", lambda: files(load(saved))
    yield "load(key, path)", lambda: load(saved["key"], "g")
    yield "load(reference, Path(path)), of the same type", lambda: isinstance(load(saved, Path("h")), Path)
    yield "load(reference of a file), files", lambda: files(load(single))
    yield "load(reference of a checkpoint), files", lambda: files(load(current.checkpoint.save("state")))
    yield "load(current.checkpoint.info), files", lambda: files(load(current.checkpoint.info))
    yield "load(url)", lambda: files(load(saved["url"]))
    yield "load(key of nothing)", lambda: load(saved["key"][:-1] + "x")
    yield "load(None)", lambda: load(None)
    yield "load_model(reference, path)", lambda: kind_of(load_model(saved, "i"))
    yield "load_model(key, path), files", lambda: [load_model(saved["key"], "j"), files("j")][1]
    yield "load_model(reference, path) where there are files", lambda: [load_model(saved, "k"), files("k")][1]
    yield "load_model(None, path)", lambda: load_model(None, "l")
    yield "delete_model(reference)", lambda: delete_model(save("model"))
    yield "delete_model(reference of a checkpoint)", lambda: delete_model(current.checkpoint.save("state"))
    delete_model(saved)
    yield "delete_model(reference of what is deleted)", lambda: delete_model(saved)
    yield "load_model(reference of what is deleted, path)", lambda: load_model(saved, "m")


def loaded():
    found = current.model.loaded
    reference = dict(found.info["saved"])
    yield "len(loaded)", lambda: len(found)
    yield "list(loaded)", lambda: list(found)
    yield "'saved' in loaded", lambda: "saved" in found
    yield "loaded['saved'], files", lambda: files(found["saved"])
    yield (
        "loaded['state'], which is to be loaded into Path(path), of the same type",
        lambda: isinstance(found["state"], Path),
    )
    yield "loaded['other']", lambda: found["other"]
    yield "type(loaded.info['saved']) is dict", lambda: type(found.info["saved"]) is dict
    yield (
        "pickle.loads(pickle.dumps(loaded.info)) == loaded.info",
        lambda: pickle.loads(pickle.dumps(found.info)) == found.info,
    )
    current.model.load(reference)
    yield "load(reference), then reference['key'] in loaded.info", lambda: reference["key"] in found.info
    yield "load(reference), then reference['key'] in loaded", lambda: reference["key"] in found
    yield "loaded.cleanup('saved'), then 'saved' in loaded", lambda: [found.cleanup("saved"), "saved" in found][1]


def hub():
    snapshot_download, load = current.huggingface_hub.snapshot_download, current.huggingface_hub.load
    reference = snapshot_download(repo_id=REPO)

    def in_a_block(*arguments, **keywords):
        with load(*arguments, **keywords) as path:
            return files(path)

    def with_a_path():
        with load(repo_id=REPO, path=Path("n")) as path:
            return isinstance(path, Path)

    more = {"max_workers": 2, "etag_timeout": 5, "force_download": True}
    yield "loaded[repo], files", lambda: files(current.huggingface_hub.loaded[REPO])
    yield "snapshot_download(repo_id=repo)", lambda: kind_of(reference)
    yield "snapshot_download(repo_id=repo), again", lambda: snapshot_download(repo_id=REPO)["key"] == reference["key"]
    yield "snapshot_download(repo_id=repo, max_workers=2, …)", lambda: kind_of(snapshot_download(repo_id=REPO, **more))
    yield "snapshot_download(repo)", lambda: kind_of(snapshot_download(REPO))
    yield "snapshot_download()", lambda: snapshot_download()
    yield "with load(repo_id=repo) as path, files", lambda: in_a_block(repo_id=REPO)
    yield "with load(repo, path, 'model') as path, files", lambda: in_a_block(REPO, "o", "model")
    yield "with load(repo_id=repo, path=Path(path)) as path, of the same type", with_a_path
    only = ["*.json"]
    yield (
        "with load(repo_id=repo, allow_patterns=['*.json']) as path, files",
        lambda: in_a_block(repo_id=REPO, allow_patterns=only),
    )
    yield "with load(path=path) as path", lambda: in_a_block(path="p")


def own_metadata(task):
    """What a task's metadata has besides what Metaflow writes, which is the same in all environments."""
    names = {entry.name: entry.type for entry in task.metadata}
    return {name for name, kind in names.items() if kind in ("checkpoint", "model-registry")}


def has_cards(task):
    try:
        return len(get_cards(task)) > 0
    except CardNotPresentException:
        return False


class ProbeFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @model
    @checkpoint
    @step
    def start(self):
        if current.retry_count == 0:
            write("begin/state")
            current.checkpoint.save("begin", "first")
            current.checkpoint.save("begin", "second", {}, False)
            raise RuntimeError("a retry resumes from the first")
        facts = describe_names()
        facts["current.checkpoint"] = describe(current.checkpoint)
        facts["current.checkpoint.info"] = describe(current.checkpoint.info)
        facts["Checkpoint"] = describe(Checkpoint(init_dir=True))
        facts["current.model"] = describe(current.model)
        for name in sorted(os.environ):
            if name.startswith("METAFLOW_CHECKPOINT_"):
                facts["What Metaflow gets besides"][f"{name} in a task's environment"] = {"is": "variable"}
        facts["Calls: current.checkpoint.save"] = outcomes(saves())
        facts["Calls: current.checkpoint.load"] = outcomes(loads())
        facts["Calls: current.checkpoint.list"] = outcomes(lists())
        facts["Calls: current.model"] = outcomes(models())
        self.saved = current.model.save("model")
        self.state = current.checkpoint.save("state")
        facts["A reference to a model"] = describe_reference(self.saved)
        facts["A reference to a checkpoint"] = describe_reference(self.state)
        self.facts, self.where = dict(facts), current.pathspec
        self.next(self.end)

    @huggingface_hub(load=[REPO])
    @model(load=["saved", ("state", Path("state of the start"))])
    @step
    def end(self):
        facts = self.facts
        facts["current.model.loaded"] = describe(current.model.loaded)
        facts["current.model.loaded.info[name]"] = describe_reference(current.model.loaded.info["saved"])
        facts["current.huggingface_hub"] = describe(current.huggingface_hub)
        facts["current.huggingface_hub.loaded"] = describe(current.huggingface_hub.loaded)
        facts["current.huggingface_hub.loaded.info[repo]"] = describe_reference(
            current.huggingface_hub.loaded.info[REPO]
        )
        snapshot = current.huggingface_hub.snapshot_download(repo_id=REPO)
        facts["A reference to a repo of the Hub"] = describe_reference(snapshot)
        facts["Metadata of a reference to a repo of the Hub"] = describe_reference(snapshot["metadata"])
        facts["Calls: current.model.loaded"] = outcomes(loaded())
        facts["Calls: current.huggingface_hub"] = outcomes(hub())
        started = Task(self.where)
        besides = facts["What Metaflow gets besides"]
        besides["a card of a step that has no @card"] = {"there is": has_cards(started)}
        for name in sorted(own_metadata(started) | own_metadata(Task(current.pathspec))):
            besides[f"{name} in a task's metadata"] = {"is": "metadata"}
        with open(os.environ["PROBE_OUTPUT"], "w") as file:
            json.dump(facts, file)


if __name__ == "__main__":
    ProbeFlow()
