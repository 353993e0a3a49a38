"""The reference to a loaded checkpoint is a dict whose fields are attributes too."""

from __future__ import annotations

import copy
import json
import pickle
import pickletools

import pytest

from metaflow_artifacts import CheckpointInfo

FIELDS = {"key": "k", "metadata": {"epoch": 3}}


def test_fields_are_items_and_attributes() -> None:
    info = CheckpointInfo(FIELDS)
    assert (info["key"], info.key, info.metadata["epoch"]) == ("k", "k", 3)
    assert type(info.to_dict()) is dict
    assert json.loads(json.dumps(info)) == info == FIELDS


def test_a_missing_field_is_an_attribute_error_that_names_the_fields() -> None:
    with pytest.raises(AttributeError, match=r"no field 'loss'; it has key, metadata"):
        _ = CheckpointInfo(FIELDS).loss
    assert not hasattr(CheckpointInfo(FIELDS), "loss")


def test_copies_and_pickles_keep_the_attributes() -> None:
    info = CheckpointInfo(FIELDS)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(info, protocol))
        assert (type(again), again, again.key) == (CheckpointInfo, FIELDS, "k")
    copied = copy.deepcopy(info)
    assert (type(copied), copied.key) == (CheckpointInfo, "k")
    copied.metadata["epoch"] = 4
    assert info.metadata == {"epoch": 3}


def test_a_pickle_names_no_private_module() -> None:
    """Artifacts are read for years, by versions whose modules are arranged in another way."""
    texts = [argument for _, argument, _ in pickletools.genops(pickle.dumps(CheckpointInfo(FIELDS)))]
    assert "metaflow_artifacts" in texts
    assert not [text for text in texts if isinstance(text, str) and "._" in text]
