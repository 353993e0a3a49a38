"""Content between files and a storage: chunks, saving, loading, and the marks by which gc and saves agree."""
