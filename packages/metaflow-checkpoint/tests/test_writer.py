"""Each process has one writer for each task, and numbers come from the journal if there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from stored_task import task_in

from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.journal import Journal
from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.writer import writer_of


@pytest.fixture
def content(tmp_path: Path) -> Path:
    (tmp_path / "content").write_text("content")
    return tmp_path / "content"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    (tmp_path / "journal").mkdir()
    return Journal(str(tmp_path / "journal"))


def test_a_task_has_one_writer_and_another_attempt_another(tmp_path: Path) -> None:
    nowhere = Journal(None)
    first = writer_of(task_in(tmp_path), nowhere)
    assert writer_of(task_in(tmp_path), nowhere) is first
    assert writer_of(task_in(tmp_path, attempt=1), nowhere) is not first


def test_numbers_are_drawn_from_the_journal(tmp_path: Path, content: Path, journal: Journal) -> None:
    writer = writer_of(task_in(tmp_path), journal)
    assert writer.save(content, "a", None, label="x")["version_id"] == 0
    # Another process of the task draws a number.
    assert journal.another().draw_number() == 1
    assert writer.save(content, "b", None, label="x")["version_id"] == 2


def test_without_a_journal_numbers_follow_those_in_the_store(tmp_path: Path, content: Path, journal: Journal) -> None:
    writer_of(task_in(tmp_path), journal).save(content, "a", None, label="x")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        # A subprocess on another machine, which has no journal.
        saved = writer_of(task_in(tmp_path), Journal(None)).save(content, "a", None, label="x")
        os.write(write, str(saved["version_id"]).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 10) == b"1"
    os.close(read)
    os.close(write)
