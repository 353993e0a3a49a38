"""The reference to a loaded checkpoint is a dict whose fields are attributes too."""

from __future__ import annotations

import copy
import pickle

import pytest

from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.info import CheckpointInfo

FIELDS = {"key": "k", "metadata": {"epoch": 3}}


def test_fields_are_items_and_attributes() -> None:
    info = CheckpointInfo(FIELDS)
    assert (info["key"], info.key, info.metadata["epoch"]) == ("k", "k", 3)


def test_a_missing_field_is_an_attribute_error_that_names_the_fields() -> None:
    with pytest.raises(AttributeError, match=r"no field 'loss'; it has key, metadata"):
        _ = CheckpointInfo(FIELDS).loss
    assert not hasattr(CheckpointInfo(FIELDS), "loss")


def test_it_is_pickled_and_copied_as_a_plain_dict() -> None:
    info = CheckpointInfo(FIELDS)
    for copied in (pickle.loads(pickle.dumps(info)), copy.deepcopy(info), info.to_dict()):
        assert type(copied) is dict
        assert copied == FIELDS
