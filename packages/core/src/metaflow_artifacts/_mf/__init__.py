"""What the decorators share and only Metaflow can give: the running task, its datastore, log and lineage.

The only subpackage of core that imports Metaflow; `import metaflow_artifacts` does not touch it.
"""

# Before any module here: Metaflow imports the decorators, and these import the modules.
import metaflow  # noqa: F401
