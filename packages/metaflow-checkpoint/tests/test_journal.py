"""The journal: what the processes of a task on one machine share."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from metaflow_artifacts._mf.loaded import note_loaded
from metaflow_artifacts._transfer.progress import Progress
from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.journal import Journal


def draw(directory: str, count: int) -> list[int | None]:
    journal = Journal(directory)
    return [journal.draw_number() for _ in range(count)]


def test_processes_and_threads_draw_each_number_once(tmp_path: Path) -> None:
    with get_context("fork").Pool(4) as processes:
        drawn = processes.starmap(draw, [(str(tmp_path), 50)] * 8)
    journal = Journal(str(tmp_path))
    with ThreadPoolExecutor(8) as threads:
        drawn.append(list(threads.map(lambda _: journal.draw_number(), range(100))))
    numbers = [number for some in drawn for number in some]
    assert sorted(number for number in numbers if number is not None) == list(range(500))
    for some in drawn[:8]:
        assert some == sorted(number for number in some if number is not None)


def test_a_number_is_at_least_what_was_asked_for(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    assert [journal.draw_number(), journal.draw_number(12), journal.draw_number(3), journal.draw_number()] == [
        0,
        12,
        13,
        14,
    ]


@pytest.mark.parametrize("directory", [None, "gone"])
def test_without_a_journal_reads_are_empty_and_nothing_fails(directory: str | None, tmp_path: Path) -> None:
    journal = Journal(directory and str(tmp_path / directory))
    assert journal.draw_number() is None
    assert not journal.is_there
    assert journal.new_saves() == []
    journal.note_parents()
    with journal.timed(Progress()) as enter:
        enter({"key": "k"}, True)
    assert list(tmp_path.iterdir()) == []


def test_saves_are_read_once_by_each_reader_and_whole(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    reader = journal.another()
    progress = Progress()
    progress.add(10, stored=7)
    with journal.timed(progress) as enter:
        enter({"key": "first"}, True)
    (first,) = reader.new_saves()
    assert (first["key"], first["stored"], first["latest"]) == ("first", 7, True)
    assert first["seconds"] >= 0
    with journal.timed(progress) as enter:
        enter({"key": "second"}, False)
    path = tmp_path / "saves.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "half')
    assert [save["key"] for save in reader.new_saves()] == ["second"]
    assert [save["key"] for save in journal.another().new_saves()] == ["first", "second"]
    with open(path, "ab") as file:
        file.write(b' written"}\n')
    assert [save["key"] for save in reader.new_saves()] == ["half written"]
    assert reader.new_saves() == []


def test_parents_of_all_processes_are_known(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path))
    child = os.fork()
    if not child:
        note_loaded("loaded by the child")
        journal.note_parents()
        os._exit(0)
    os.waitpid(child, 0)
    assert "loaded by the child" in journal.parents()
