"""The key grammar: what is written is what is parsed, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaflow_artifacts import InvalidInput, InvalidReference
from metaflow_artifacts._format.keys import CHECKPOINTS, HUB, CheckpointKey, CheckpointPlace, ModelKey, parse_key

names = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), min_size=1, max_size=20)
hex8 = st.text("0123456789abcdef", min_size=8, max_size=8)
hex12 = st.text("0123456789abcdef", min_size=12, max_size=12)


@given(names)
def test_any_printable_label_survives_its_key(label: str) -> None:
    key = ModelKey.new(label)
    assert parse_key(str(key)) == key
    assert str(key).isascii()
    assert str(key).count("/") == 3
    assert key.uuid == str(key).rpartition("/")[2]


@given(
    names,
    names,
    hex12,
    hex12,
    hex8,
    st.integers(0, 9),
    names,
    st.integers(0, 10**9),
    st.sampled_from([CHECKPOINTS, HUB]),
)
def test_any_checkpoint_survives_its_key(
    flow: str, step: str, scope: str, task: str, id_: str, attempt: int, name: str, n: int, root: str
) -> None:
    key = CheckpointKey(CheckpointPlace(flow, step, scope, task, root), id_, attempt, name, n)
    assert parse_key(str(key)) == key
    assert str(key).startswith(key.place.prefix())
    assert str(key).isascii()
    assert ".." not in str(key).split("/")


def test_plain_names_stay_as_they_are() -> None:
    place = CheckpointPlace("CheckpointFlow", "start", "26ec4b03ee0e", "a92ae9615600")
    assert str(CheckpointKey(place, "54d4b3b1", 0, "mfchckpt", 0)) == (
        "mf.checkpoints/checkpoints/artifacts/CheckpointFlow/start/26ec4b03ee0e/a92ae9615600/54d4b3b1.0.mfchckpt.0"
    )
    assert str(ModelKey("keras_model", "5680bf7d3344450697a1f340900f4878")) == (
        "mf.models/models/artifacts/keras_model_5680bf7d3344450697a1f340900f4878"
    )


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        ("", "empty"),
        ("two\nlines", "control"),
        ("bell\a", "control"),
        ("\ud800", "unprintable"),
        ("x" * 300, "300 bytes when encoded for a key, at most 200"),
        ("ö" * 100, "600 bytes"),
        (7, "expected a string, found int"),
    ],
)
def test_a_label_is_refused_with_the_rule(label: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem) as caught:
        ModelKey.new(label)
    assert not isinstance(caught.value, InvalidReference)


@pytest.mark.parametrize("label", ["a/b", "..", "../../x", ".", "with space", "模型", "a%2Fb", "~root", "%"])
def test_odd_labels_stay_below_the_prefix(label: str) -> None:
    key = ModelKey.new(label)
    assert str(key).split("/")[:3] == ["mf.models", "models", "artifacts"]
    assert len(str(key).split("/")) == 4
    assert parse_key(str(key)) == key


HEX = "5680bf7d3344450697a1f340900f4878"
PLACE = "mf.checkpoints/checkpoints/artifacts/F/s/26ec4b03ee0e/a92ae9615600"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "x",
        "/etc/passwd",
        f"/mf.models/models/artifacts/m_{HEX}",
        f"mf.models/models/artifacts/m_{HEX}/",
        f"mf.models//models/artifacts/m_{HEX}",
        f"mf.models/models/artifacts/../artifacts/m_{HEX}",
        f"mf.models/models/artifacts/../../m_{HEX}",
        f"mf.models/models/artifacts/m_{HEX.upper()}",
        f"mf.models/models/artifacts/m_{HEX}\n",
        f"mf.models/models/artifacts/m\x00_{HEX}",
        f"mf.models/models/artifacts/m%2f_{HEX}",
        f"mf.models/models/artifacts/%6D_{HEX}",
        f"mf.models/models/artifacts/%FF_{HEX}",
        f"mf.models/models/artifacts/ö_{HEX}",
        f"mf.models/models/artifacts/_{HEX}",
        f"mf.checkpoints/models/artifacts/m_{HEX}",
        f"{PLACE}/54d4b3b1.0.mfchckpt",
        f"{PLACE}/54d4b3b1.00.mfchckpt.0",
        f"{PLACE}/54d4b3b1.0..0",
        f"{PLACE}/54d4b3b1.-1.mfchckpt.0",
        f"{PLACE}/54d4b3b1.0.mfchckpt.٣",
        f"{PLACE}/../a92ae9615600/54d4b3b1.0.mfchckpt.0",
        "mf.artifacts/chunks/sha256/00/" + "0" * 62,
    ],
)
def test_what_is_not_exactly_a_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidReference, match=r"not the key of a stored artifact.*keys look like"):
        parse_key(key)


@given(st.text(max_size=80) | st.from_regex(r"mf\.(models|checkpoints)/[a-z./%0-9]{0,80}", fullmatch=True))
def test_no_text_is_parsed_into_another_key(text: str) -> None:
    try:
        key = parse_key(text)
    except InvalidReference:
        return
    assert str(key) == text
