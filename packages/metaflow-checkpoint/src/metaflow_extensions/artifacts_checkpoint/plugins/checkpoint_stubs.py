"""Imported by `metaflow develop stubs` alone, before it writes down the types of `Checkpoint`.

It looks names of annotations up in the module at run time. Those that `checkpoint.py` imports for type checkers only,
because every Metaflow process imports that module, are added here.
"""

from typing import List  # noqa: UP035

from metaflow.client.core import Task

from metaflow_artifacts.plugin import ModelArtifact, PendingSave

from .checkpoint_deco import checkpoint

vars(checkpoint).update(Task=Task, ModelArtifact=ModelArtifact, PendingSave=PendingSave)
# What is in a list is only written down of this form.
vars(checkpoint).update(References=List[ModelArtifact])  # noqa: UP006

_addl_stubgen_modules = [
    "metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.checkpoint",
    "metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.current_checkpoint",
]
