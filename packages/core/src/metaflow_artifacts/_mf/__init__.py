"""What the decorators share and what needs Metaflow: the running task, its datastore, log, lineage and cards.

This is the only subpackage of core that imports Metaflow. `import metaflow_artifacts` does not import it.
"""

# Metaflow must be imported before any module here: it imports the decorators, which import these modules.
import metaflow  # noqa: F401
