"""gc and `check --read` in stages that can run on several machines, as an upkeep flow does.

`survey_store` reads all manifests once, and writes what they name to the store, by prefix. `sweep_chunks` and
`check_chunks` then take some of the prefixes each, anywhere and at the same time. `finish_upkeep` puts the results
together. The stages are those of `gc` and `check`; `docs/format.md` says why they are safe beside saves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

from metaflow_artifacts._layout import SURVEYS
from metaflow_artifacts._store.store import Store
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._upkeep.contents import Checked, check_prefixes, problems_of
from metaflow_artifacts._upkeep.foreign_check import check_foreign
from metaflow_artifacts._upkeep.garbage import Waiting, find_garbage, remove_garbage
from metaflow_artifacts._upkeep.gc import GRACE, GcStats, begin_gc, refuse_again
from metaflow_artifacts._upkeep.manifests import read_manifests
from metaflow_artifacts._upkeep.named import PREFIXES, NamedChunks, rows_of, sizes_of
from metaflow_artifacts._upkeep.others import find_others, keeps_versions
from metaflow_artifacts._upkeep.report import CheckReport, Note, Problem, notes_on
from metaflow_artifacts._upkeep.survey import Strays
from metaflow_artifacts.errors import ArtifactNotFound, InvalidInput, StorageError

__all__ = ["Survey", "Swept", "Upkeep", "check_chunks", "finish_upkeep", "survey_store", "sweep_chunks"]


@dataclass(frozen=True)
class Survey:
    """What stage 1 found. It can be pickled; the digests of the chunks are in the store."""

    root: str
    id: str
    """32 hex digits: where in the store the digests are."""
    begin: float
    """When it began, in seconds since the epoch, by the storage's clock."""
    limit: float
    """As in `GcPlan`."""
    dry_run: bool
    """Whether the stages that follow remove nothing."""
    whole: bool
    """Whether the manifests were checked completely."""
    artifacts: int
    """Manifests that were read."""
    files: int
    """Files in them; 0 unless `whole`."""
    size: int
    """Bytes of content in them."""
    problems: tuple[Problem, ...]
    """Manifests that are damaged."""
    notes: tuple[Note, ...]
    """What is not understood."""
    refusal: str | None
    """Why nothing may be removed; None if chunks may be swept."""
    digests: Mapping[str, str]
    """The SHA-256, in hex, of what is stored for each prefix; prefixes of which no chunk is named are left out."""
    ignore: tuple[str, ...] = ()
    """Prefixes of keys below which objects that are not understood were ignored."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """All prefixes of chunks: each must be swept once. 256 texts of two hex digits."""
        return PREFIXES

    def key(self, prefix: str) -> str:
        """The storage key of the digests of one prefix."""
        return f"{SURVEYS}{self.id}.{prefix}"


@dataclass(frozen=True)
class Swept:
    """The result of sweeping some prefixes."""

    chunks: int
    """Chunks in the store before."""
    stored: int
    """Bytes of all these chunks."""
    removed: int
    """Chunks that were removed, or would be if it is a dry run."""
    freed: int
    """Bytes of them."""
    spared: int
    """Chunks that a save needed again, or another gc removed, before this one came to them."""
    waiting: Waiting
    """Chunks that no artifact names and that are younger than the grace period; they stay."""


@dataclass(frozen=True)
class Upkeep:
    """The result of all stages."""

    gc: GcStats | None
    """None if nothing may be removed: `refusal` says why."""
    check: CheckReport | None
    """None if nothing was read."""
    refusal: str | None


def survey_store(
    store: Store,
    *,
    grace: float = GRACE,
    exclusive: bool = False,
    dry_run: bool = True,
    ignore: Sequence[str] = (),
    whole: bool = False,
    progress: Progress | None = None,
) -> Survey:
    """Stage 1: read all manifests, and write the digests of the chunks that they name to the store, by prefix.

    `grace`, `exclusive`, `dry_run` and `ignore` are as in `gc`. `whole` is needed for `check_chunks`: then the
    manifests are checked completely. `progress` counts the manifests that are read. What keeps a gc from removing
    anything is noted in the result, not raised. Raises InvalidInput for a grace period that is too short, and
    StorageError if the store needs a later version or the storage fails.
    """
    strays = Strays(store.storage, ignore)
    begin, limit = begin_gc(store, grace, exclusive)
    named = NamedChunks()
    seen = read_manifests(store, strays, named, whole=whole, progress=progress)
    if seen.refusal is None:
        try:
            strays.refuse()
        except StorageError as error:
            seen.refusal = str(error)
    survey = Survey(
        root=store.root,
        id=uuid4().hex,
        begin=begin,
        limit=limit,
        dry_run=dry_run,
        whole=whole,
        artifacts=seen.artifacts,
        files=seen.files,
        size=seen.size,
        problems=tuple(seen.problems),
        notes=notes_on(store.storage, strays),
        refusal=seen.refusal,
        digests=(digests := dict[str, str]()),
        ignore=tuple(ignore),
    )
    for prefix in PREFIXES:
        if rows := rows_of(named.of(prefix)):
            store.storage.put(survey.key(prefix), rows)
            digests[prefix] = hashlib.sha256(rows).hexdigest()
    return survey


def sweep_chunks(store: Store, survey: Survey, prefixes: Sequence[str], *, progress: Progress | None = None) -> Swept:
    """Stage 2 of gc: remove the chunks of some prefixes that no artifact needs, unless the survey is for a dry run.

    It may be called again for the same prefixes, and by several processes at once. Raises InvalidInput for the survey
    of another store or what is no prefix, and StorageError if the survey has a `refusal`, if its objects are gone or
    damaged, if an object that is not understood was written since, or if the storage fails.
    """
    _demand(store, survey, prefixes)
    if survey.refusal is not None:
        raise StorageError(survey.refusal)
    if not survey.dry_run:
        refuse_again(store, survey.ignore)
    found = find_garbage(store.storage, partial(_named, store, survey), survey.begin, survey.limit, prefixes)
    removed, freed = len(found.garbage), found.garbage.size
    if not survey.dry_run:
        progress = progress or Progress()
        progress.start(found.garbage.size)
        done = remove_garbage(store, found.garbage, survey.limit, progress, survey.begin)
        removed, freed = done.chunks, done.size
    return Swept(found.chunks, found.stored, removed, freed, len(found.garbage) - removed, found.waiting)


def check_chunks(store: Store, survey: Survey, prefixes: Sequence[str], *, progress: Progress | None = None) -> Checked:
    """Stage 2 of `check --read`: read and hash the chunks of some prefixes that artifacts need. Nothing is changed.

    Raises InvalidInput for the survey of another store, or one that is not `whole`, and for what is no prefix;
    StorageError if the survey's objects are gone or damaged, or if the storage fails.
    """
    _demand(store, survey, prefixes)
    if not survey.whole:
        raise InvalidInput("the survey did not check the manifests completely; make it with whole=True")
    return check_prefixes(store.storage, partial(_named, store, survey), prefixes, progress or Progress())


def finish_upkeep(store: Store, survey: Survey, swept: Iterable[Swept], checked: Iterable[Checked] = ()) -> Upkeep:
    """Put the results of all prefixes together, and remove the survey from the store, and what else a gc removes.

    If chunks were checked, what metaflow-checkpoint has stored is checked here too, in this process.

    `swept` must have the results of `sweep_chunks` for all prefixes, unless the survey has a `refusal`; `checked` those
    of `check_chunks`, unless nothing was read. Raises InvalidInput for the survey of another store, and StorageError if
    the storage fails.
    """
    _demand(store, survey, ())
    parts = list(checked)
    report = _report(store, survey, parts) if parts else None
    stats = _statistics(store, survey, list(swept)) if survey.refusal is None else None
    store.storage.delete([survey.key(prefix) for prefix in survey.digests])
    return Upkeep(stats, report, survey.refusal)


def _demand(store: Store, survey: Survey, prefixes: Sequence[str]) -> None:
    if survey.root != store.root:
        raise InvalidInput(f"the survey was made for {survey.root}, not for {store.root}; make one for it")
    for prefix in prefixes:
        if prefix not in PREFIXES:
            raise InvalidInput(f"{prefix!r} is no prefix of chunks: two hex digits in small letters")


def _named(store: Store, survey: Survey, prefix: str) -> dict[bytes, int]:
    if prefix not in survey.digests:
        return {}
    key = survey.key(prefix)
    try:
        rows = store.storage.get(key)
    except ArtifactNotFound as error:
        raise StorageError(
            f"{store.storage.url(key)} does not exist: this upkeep has ended, or a gc has removed what was left of it; "
            "begin again with a new survey"
        ) from error
    # A chunk that is missing here would be removed though an artifact needs it.
    if hashlib.sha256(rows).hexdigest() != survey.digests[prefix]:
        raise StorageError(f"{store.storage.url(key)} has changed; nothing was removed; begin again with a new survey")
    return sizes_of(rows)


def _report(store: Store, survey: Survey, parts: Sequence[Checked]) -> CheckReport:
    strays = Strays(store.storage)
    problems = problems_of(store, [damage for part in parts for damage in part.damages], strays)
    foreign, others = check_foreign(store.storage, strays, None, read=True)
    return CheckReport(
        artifacts=survey.artifacts,
        files=survey.files,
        size=survey.size,
        chunks=sum(part.chunks for part in parts),
        stored=sum(part.stored for part in parts),
        read=sum(part.read for part in parts),
        foreign=foreign,
        problems=(*survey.problems, *problems, *others),
        notes=survey.notes,
    )


def _statistics(store: Store, survey: Survey, parts: Sequence[Swept]) -> GcStats:
    others = find_others(store, survey.begin, survey.limit)
    if not survey.dry_run:
        refuse_again(store, survey.ignore)
        store.storage.delete([info.key for info in others.all])
    return GcStats(
        dry_run=survey.dry_run,
        artifacts=survey.artifacts,
        chunks=sum(part.chunks for part in parts),
        stored=sum(part.stored for part in parts),
        removed=sum(part.removed for part in parts),
        temporary=len(others.temporary),
        tombstones=len(others.tombstones),
        choices=len(others.choices),
        marks=len(others.marks),
        freed=sum(part.freed for part in parts) + sum(info.size for info in others.all),
        spared=sum(part.spared for part in parts),
        waiting=sum((part.waiting for part in parts), Waiting(0, 0, None, None)),
        keeps_versions=keeps_versions(store.storage),
    )
