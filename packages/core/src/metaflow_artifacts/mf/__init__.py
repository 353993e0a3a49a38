"""What the decorators share and only Metaflow can give: the running task, its datastore, log and lineage.

The only subpackage of core that imports Metaflow; `import metaflow_artifacts` does not touch it.
"""
