"""The planner: every byte once, cuts where they are promised, and few cuts moved by a small change."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metaflow_artifacts._format.plan import is_packed, plan, segments

CHUNK = 64

files = st.lists(st.integers(0, 5 * CHUNK), max_size=60).map(
    lambda sizes: [(f"d{n % 3}/f{n:04}", size) for n, size in enumerate(sizes)]
)


@given(files)
def test_chunks_hold_every_byte_once_and_in_order(files: list[tuple[str, int]]) -> None:
    sizes = [size for _, size in files]
    chunks = plan(files, CHUNK)
    assert sum(chunks) == sum(sizes)
    assert all(0 < chunk <= CHUNK for chunk in chunks)
    position = [0] * len(files)
    last = 0
    for chunk, parts in zip(chunks, segments(sizes, chunks), strict=True):
        assert sum(part.length for part in parts) == chunk
        for part in parts:
            assert part.file >= last
            assert part.start == position[part.file]
            position[part.file] += part.length
            last = part.file
    assert position == sizes


@given(files)
def test_a_small_file_is_never_cut_and_a_large_one_never_shares(files: list[tuple[str, int]]) -> None:
    sizes = [size for _, size in files]
    for parts in segments(sizes, plan(files, CHUNK)):
        for part in parts:
            if is_packed(sizes[part.file], CHUNK):
                assert part.length == sizes[part.file]
            else:
                assert len(parts) == 1
                assert part.start % CHUNK == 0


def _cuts(files: list[tuple[str, int]], chunk: int) -> set[tuple[str, ...]]:
    sizes = [size for _, size in files]
    return {tuple(files[part.file][0] for part in parts) for parts in segments(sizes, plan(files, chunk))}


def test_an_added_file_changes_only_the_pack_around_it() -> None:
    files = [(f"part{n:05}.bin", 1000) for n in range(20_000)]
    chunk = 800_000
    before = _cuts(files, chunk)
    after = _cuts([*files[:10_000], ("part09999a.bin", 1000), *files[10_000:]], chunk)
    assert len(before) > 150
    assert len(after - before) <= 4


def test_packs_hold_at_most_a_quarter_of_a_chunk_and_about_half_of_that() -> None:
    chunks = plan([(f"part{n:05}.bin", 1000) for n in range(20_000)], 200_000)
    assert max(chunks) <= 50_000
    assert 15_000 < sum(chunks) / len(chunks) < 35_000


def test_one_large_file_is_cut_at_the_chunk_size() -> None:
    assert plan([("model", 3 * CHUNK + 1)], CHUNK) == [CHUNK, CHUNK, CHUNK, 1]
    assert plan([], CHUNK) == []
    assert plan([("empty", 0)], CHUNK) == []
