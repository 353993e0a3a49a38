"""Moving content between files and a storage: chunks, saving, loading, and the marks that coordinate gc with saves."""
