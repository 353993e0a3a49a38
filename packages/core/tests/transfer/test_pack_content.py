"""The content of packs, and the digests of their files."""

from __future__ import annotations

from pathlib import Path

from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.saving import file_entries, save_chunks
from metaflow_artifacts._transfer.scan import scan


def test_only_files_that_share_a_chunk_have_a_digest_of_their_own(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name, content in {"alone/a": b"content", "alone/empty": b"", "other": b"x" * 4096, "other2": b"y"}.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    # "other" is large for these chunks, so that it ends the pack before it.
    found = scan(source)
    chunks, digests = save_chunks(open_storage(str(tmp_path / "store")), found, 64 << 10, Progress())
    assert [chunk.size for chunk in chunks] == [7, 4096, 1]
    assert [entry.sha256 for entry in file_entries(found.files, digests)] == [None] * 4
