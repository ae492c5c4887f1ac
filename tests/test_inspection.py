"""The report on data: every number by hand, every sentence word for word, real data where there are any."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from bnn_jax import inspection, splits
from bnn_jax.types import UserError

# rows a, b, c ... ; a is in train three times and once in test, b in train and val with another label
ROWS = "a a a b c d | b e f | a g g h"
IDS = ["a0", "a1", "a2", "b0", "c0", "d0", "b1", "e0", "f0", "a3", "g0", "g1", "h0"]
LABELS = np.array([0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 1, 1, 0])
PART = np.repeat(["train", "val", "test"], [6, 3, 4])


def images() -> np.ndarray:
    letters = ROWS.replace("|", "").split()
    return np.stack([np.full((2, 3, 1), (ord(letter) - ord("a")) / 8, np.float32) for letter in letters])


@pytest.fixture
def summary():
    groups = np.array([1, 1, 2, 2, 3, 3, 4, 5, 6, 1, 2, 7, 8])
    return inspection.summarise(images(), LABELS, PART, ids=IDS, class_names=["well", "ill"], groups=groups)


def test_summary_by_hand(summary):
    assert summary == {
        "num_examples": 13,
        "task": "classification",
        "input_shape": [2, 3, 1],
        "value_range": [0.0, 0.875],
        "not_finite": 0,
        "class_names": ["well", "ill"],
        "parts": {
            "train": {"count": 6, "classes": [3, 3]},
            "val": {"count": 3, "classes": [1, 2]},
            "test": {"count": 4, "classes": [2, 2]},
        },
        "constant_columns": [],
        "duplicates": {
            "within": {
                "train": {"sets": 1, "copies": 2},
                "val": {"sets": 0, "copies": 0},
                "test": {"sets": 1, "copies": 1},
            },
            "across": {
                "train/val": {"sets": 1, "examples": 1, "ids": ["b1"]},
                "train/test": {"sets": 1, "examples": 1, "ids": ["a3"]},
            },
            "conflicting": {"sets": 1, "examples": 2, "ids": ["b0", "b1"]},
        },
        "groups": {"count": 8, "across": {"train/test": {"groups": 2, "ids": ["1", "2"]}}},
    }
    assert json.loads(json.dumps(summary)) == summary


def test_sentences_word_for_word(summary):
    assert inspection.warnings(summary) == [
        "val shares 1 of its 3 examples with train, as exact copies (b1): scores on val come out too good; "
        "divide again with copies kept together.",
        "test shares 1 of its 4 examples with train, as exact copies (a3): scores on test come out too good; "
        "divide again with copies kept together.",
        "train and test share 2 groups, such as patients (1, 2): scores on test come out too good; "
        "divide again by group.",
        "2 examples have an exact copy with a different label (b0, b1): correct or drop them.",
    ]


def test_sound_data_need_no_sentence():
    x = np.arange(24, dtype=np.float32).reshape(12, 2)
    summary = inspection.summarise(x, np.arange(12) % 2, np.repeat(["train", "test"], 6))
    assert inspection.warnings(summary) == []
    assert summary["groups"] is None
    assert summary["class_names"] == ["0", "1"]
    assert summary["parts"]["val"] == {"count": 0, "classes": [0, 0]}


def test_order_of_the_examples_changes_only_the_order_of_ids(summary):
    order = np.random.default_rng(0).permutation(13)
    found = inspection.summarise(
        images()[order], LABELS[order], PART[order], ids=[IDS[i] for i in order], class_names=["well", "ill"]
    )
    assert sorted(found["duplicates"]["conflicting"].pop("ids")) == ["b0", "b1"]
    summary["duplicates"]["conflicting"].pop("ids")
    assert {**found, "groups": None} == {**summary, "groups": None}


def test_ten_ids_are_listed_and_three_named():
    x = np.zeros((40, 1), np.float32)
    summary = inspection.summarise(
        x, np.arange(40) % 2, ["train"] * 20 + ["test"] * 20, groups=[*range(20)] * 2
    )
    found = summary["duplicates"]
    assert found["across"]["train/test"] == {
        "sets": 1,
        "examples": 20,
        "ids": [str(i) for i in range(20, 30)],
    }
    assert found["within"]["train"] == {"sets": 1, "copies": 19}
    assert found["conflicting"] == {"sets": 1, "examples": 40, "ids": [str(i) for i in range(10)]}
    assert summary["groups"]["across"]["train/test"] == {"groups": 20, "ids": [str(i) for i in range(10)]}
    assert "(20, 21, 22, ...)" in inspection.warnings(summary)[0]


def test_classes_missing_and_unbalanced():
    labels = np.repeat([0, 1, 2, 0, 2], [10, 31, 10, 5, 5])
    part = np.repeat(["train", "test"], [51, 10])
    x = np.arange(61.0)[:, None]
    told = inspection.warnings(inspection.summarise(x, labels, part, class_names=["a", "b"]))
    assert told == [
        "test has no example of class 1 (b).",
        "train is imbalanced, 1:3.1: 10 of class 0 (a) against 31 of class 1 (b); accuracy alone misleads.",
    ]
    labels[10] = 2  # 10 : 30 is 1:3 and not worse
    told = inspection.warnings(inspection.summarise(x, labels, part))
    assert told == ["test has no example of class 1."]


def test_a_class_without_any_example_is_missing_and_not_a_matter_of_balance():
    found = inspection.summarise(
        np.arange(4.0)[:, None], np.arange(4) % 2, ["train"] * 4, class_names="abcde"
    )
    assert inspection.warnings(found) == ["train has no example of class 2 (c), class 3 (d), class 4 (e)."]


def test_regression():
    """Mean and spread of each part; equal inputs with unequal targets are counted, not complained of."""
    x = np.array([[1.0, 5.0, 0.0], [2.0, 5.0, 0.0], [2.0, 5.0, 0.0], [3.0, 5.0, 1.0]])
    summary = inspection.summarise(x, np.array([1.0, 3.0, 4.0, 7.0]), ["train", "train", "train", "test"])
    assert summary["task"] == "regression"
    assert summary["class_names"] == []
    assert summary["parts"]["train"]["target"] == pytest.approx(
        {"mean": 8 / 3, "std": np.sqrt(26 / 3 - 64 / 9), "min": 1.0, "max": 4.0}
    )
    assert summary["parts"]["test"] == {
        "count": 1,
        "target": {"mean": 7.0, "std": 0.0, "min": 7.0, "max": 7.0},
    }
    assert summary["parts"]["val"] == {"count": 0, "target": None}
    assert summary["duplicates"]["conflicting"] == {"sets": 1, "examples": 2, "ids": ["1", "2"]}
    assert summary["constant_columns"] == [1, 2]  # the third moves in test only: no training on it
    assert inspection.warnings(summary) == [
        "2 of 3 input columns have one value in all of train (counted from 0: 1, 2): nothing can be learned "
        "from them; leave them out."
    ]
    assert json.loads(json.dumps(summary)) == summary


def test_values_that_are_not_finite_are_counted_and_json_stays_valid():
    x = np.arange(12.0).reshape(4, 3)
    x[1, 1], x[3, 0], x[3, 2] = np.nan, np.inf, -np.inf
    summary = inspection.summarise(x, np.arange(4) % 2, ["train"] * 4)
    assert summary["value_range"] == [0.0, 10.0]
    assert summary["not_finite"] == 2
    assert inspection.warnings(summary) == [
        "2 of 4 examples hold NaN or infinite values: clean or drop them."
    ]
    nothing = inspection.summarise(np.full((2, 3), np.nan), np.arange(2), ["train"] * 2)
    assert nothing["value_range"] == [None, None]
    json.dumps([summary, nothing], allow_nan=False)


def test_byte_images():
    x = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    found = inspection.summarise(x, np.array([0, 1], np.uint8), ["train", "train"])
    assert found["value_range"] == [0, 31]
    json.dumps(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(y=LABELS[:5]), "x 13, y 5, part 13"),
        (dict(groups=[1]), "groups 1"),
        (dict(ids=["a"]), "ids 1"),
        (dict(x=np.zeros((0, 2)), y=[], part=[]), "at least one example"),
        (dict(part=["dev"] * 13), "unknown part 'dev'"),
        (dict(y=LABELS - 1), "none below 0"),
        (dict(y=np.full(13, np.nan)), "one finite number"),
        (dict(y=np.eye(13)), "one finite number"),
        (dict(y=np.array(["ill"] * 13)), "one finite number"),
    ],
)
def test_mistakes_are_told_in_one_line(changes, message):
    arguments = {"x": images(), "y": LABELS, "part": PART, **changes}
    with pytest.raises(UserError, match=message) as error:
        inspection.summarise(**arguments)
    assert "\n" not in str(error.value)


def test_divided_by_copies_and_groups_nothing_is_shared():
    random = np.random.default_rng(0)
    x, groups = random.integers(60, size=(200, 1)), random.integers(150, size=200)
    labels = np.arange(200) % 2
    part = splits.divide(
        labels, mode="random", ratios=(2, 1, 1), groups=groups, duplicates=splits.content_hash(x)
    )
    found = inspection.summarise(x, labels, part, groups=groups)
    assert found["duplicates"]["across"] == found["groups"]["across"] == {}


@pytest.mark.skipif("BNN_JAX_DATA" not in os.environ, reason="BNN_JAX_DATA names no folder of raw data")
def test_pneumoniamnist_holds_the_known_copies():
    with np.load(Path(os.environ["BNN_JAX_DATA"]) / "pneumoniamnist.npz") as file:
        x, y = (np.concatenate([file[f"{p}_{kind}"] for p in splits.PARTS]) for kind in ("images", "labels"))
        part = np.repeat(splits.PARTS, [len(file[f"{p}_labels"]) for p in splits.PARTS])
    found = inspection.summarise(x, y[:, 0], part)
    assert [entry["classes"] for entry in found["parts"].values()] == [[1214, 3494], [135, 389], [234, 390]]
    assert [entry["copies"] for entry in found["duplicates"]["within"].values()] == [18, 0, 3]
    assert {pair: entry["examples"] for pair, entry in found["duplicates"]["across"].items()} == {
        "train/val": 8
    }
    assert found["duplicates"]["conflicting"]["sets"] == 0
    assert len(inspection.warnings(found)) == 1
