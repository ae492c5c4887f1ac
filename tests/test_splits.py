"""Splits: exact sizes and class counts, components kept whole, given parts left alone, every mistake told."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from bnn_jax import splits
from bnn_jax.types import UserError


def table(labels, part) -> np.ndarray:
    """(K, 3) examples of each class in train, val and test."""
    return np.array([[np.sum((labels == k) & (part == p)) for p in splits.PARTS] for k in np.unique(labels)])


def torn(ids, part) -> list:
    """The ids that lie in several parts."""
    ids = np.asarray(ids)
    return [i for i in np.unique(ids) if len(set(part[ids == i])) > 1]


def test_counts_by_hand():
    """10 of one class and 20 of another, as 8:1:1, come out exactly; the type is plain text."""
    labels = np.repeat([0, 1], [10, 20])
    part = splits.divide(labels, mode="random")
    np.testing.assert_array_equal(table(labels, part), [[8, 1, 1], [16, 2, 2]])
    assert part.dtype == "<U5"


@pytest.mark.parametrize(
    ("total", "ratios", "sizes"),
    [
        (15, (8, 1, 1), [12, 2, 1]),  # 1.5 and 1.5: of equal remainders the earlier part
        (16, (8, 1, 1), [13, 2, 1]),  # 12.8, 1.6, 1.6
        (17, (8, 1, 1), [13, 2, 2]),  # 13.6, 1.7, 1.7
        (20, (0.7, 0.15, 0.15), [14, 3, 3]),
        (7, (1, 0, 1), [4, 0, 3]),
        (7, (1, 1, 0), [4, 3, 0]),
        (7, (2, 0, 0), [7, 0, 0]),
    ],
)
def test_sizes_are_those_of_largest_remainder(total, ratios, sizes):
    for labels, stratify in ((np.linspace(0, 1, total), False), (np.zeros(total, int), True)):
        part = splits.divide(labels, mode="random", ratios=ratios, stratify=stratify)
        assert [np.sum(part == p) for p in splits.PARTS] == sizes


@pytest.mark.parametrize("case", range(10))
@pytest.mark.parametrize("ratios", [(8, 1, 1), (5, 3, 2), (0.61, 0.2, 0.19)])
def test_every_class_is_within_one_of_its_share(case, ratios):
    """Ten random class balances, many classes small: sizes exact, no count a whole example off."""
    random = np.random.default_rng(case)
    labels = random.permutation(np.repeat(np.arange(8), random.integers(10, 60, size=8)))
    part = splits.divide(labels, mode="random", ratios=ratios, seed=case)
    counts, share = table(labels, part), np.array(ratios) / np.sum(ratios)
    assert np.abs(counts - np.bincount(labels)[:, None] * share).max() < 1
    assert np.abs(counts.sum(0) - len(labels) * share).max() < 1


def test_a_rare_class_comes_to_train_and_test_first():
    """Three of a class are 2.4, 0.3, 0.3, yet test gets one, for one of the largest class; sizes stay."""
    for labels, sizes in (
        (np.repeat([0, 1, 2], [100, 3, 2]), [84, 11, 10]),
        (np.repeat([0, 1], [97, 3]), [80, 10, 10]),
    ):
        counts = table(labels, splits.divide(labels, mode="random"))
        np.testing.assert_array_equal(counts.sum(0), sizes)
        assert (counts[1:, 2] == 1).all()
        assert counts[1:, 0].min() >= 1


def test_a_rare_class_is_rounded_towards_test_where_that_costs_no_other_class():
    """5 of a class are 4, 0.6, 0.4: the fifth goes to test, and both classes stay within one."""
    part = splits.divide(np.repeat([0, 1], [95, 5]), mode="random", ratios=(80, 12, 8))
    np.testing.assert_array_equal(table(np.repeat([0, 1], [95, 5]), part), [[76, 12, 7], [4, 0, 1]])


def test_every_example_is_drawn_equally_often():
    """600 seeds: the times an example is in test are binomial(600, 1/5), 5 sigma = 49 around 120."""
    labels = np.arange(30) % 3
    times = sum(
        splits.divide(labels, mode="random", ratios=(3, 1, 1), seed=seed) == "test" for seed in range(600)
    )
    assert np.abs(times - 120).max() < 5 * np.sqrt(600 * 0.2 * 0.8)
    assert times.sum() == 600 * 6


def test_a_function_of_the_seed_in_every_process():
    """Text ids hash differently in another process; the split must not know."""
    code = (
        "import numpy as np; from bnn_jax import splits; y = np.arange(60) % 2; "
        "g = [f'p{i // 3}' for i in range(60)]; "
        "print(','.join(splits.divide(y, mode='random', groups=g, seed=5)))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    labels, groups = np.arange(60) % 2, [f"p{i // 3}" for i in range(60)]
    draw = lambda seed: ",".join(splits.divide(labels, mode="random", groups=groups, seed=seed))
    assert run.stdout.strip() == draw(5) != draw(6)


# groups and duplicates


@pytest.fixture
def patients():
    """800 images of 200 patients, 1 to 7 each, a quarter of them ill; 60 images are copies of others."""
    random = np.random.default_rng(0)
    ids = np.sort(random.integers(200, size=800))
    labels = (ids % 4 == 0).astype(int)
    hashes = np.arange(800)
    hashes[random.choice(800, 60, replace=False)] = random.integers(800, size=60)
    return labels, np.char.add("patient ", ids.astype(str)), hashes


def test_groups_and_copies_stay_whole_and_shares_hold(patients):
    labels, ids, hashes = patients
    part = splits.divide(labels, mode="random", groups=ids, duplicates=hashes)
    assert torn(ids, part) == torn(hashes, part) == []
    ideal = np.bincount(labels)[:, None] * [0.8, 0.1, 0.1]
    sizes = np.unique(ids, return_counts=True)[1]
    assert np.abs(table(labels, part) - ideal).max() <= sizes.max()
    alone = splits.divide(labels, mode="random", duplicates=hashes)  # without patients: copies and singles
    assert torn(hashes, alone) == []
    assert torn(ids, alone)
    assert np.abs(table(labels, alone) - ideal).max() < 2


def test_small_and_large_groups_come_to_every_part(patients):
    """Parts hold patients alike: the mean number of images a patient is close in train and test."""
    labels, ids, _ = patients
    part = splits.divide(labels, mode="random", groups=ids)
    mean = [np.unique(ids[part == p], return_counts=True)[1].mean() for p in ("train", "test")]
    assert mean[1] == pytest.approx(mean[0], rel=0.35)


def test_groups_and_copies_join_to_one_component():
    """a-a by patient, a-b by copy, b-b by patient: the three relations tie four images together."""
    labels = np.zeros(30, int)
    groups = ["a", "a", "b", "b", *range(26)]
    duplicates = [0, "same", "same", 1, *range(100, 126)]
    for seed in range(20):
        part = splits.divide(
            labels, mode="random", ratios=(1, 1, 1), groups=groups, duplicates=duplicates, seed=seed
        )
        assert len(set(part[:4])) == 1


def test_singles_make_up_for_what_a_large_group_took():
    part = splits.divide(
        np.zeros(100, int), mode="random", ratios=(5, 3, 2), groups=[0] * 30 + [*range(1, 71)]
    )
    assert [np.sum(part == p) for p in splits.PARTS] == [50, 30, 20]


def test_groups_of_one_change_nothing():
    labels = np.arange(50) % 3
    plain = splits.divide(labels, mode="random", seed=2)
    np.testing.assert_array_equal(plain, splits.divide(labels, mode="random", groups=range(50), seed=2))
    np.testing.assert_array_equal(
        plain, splits.divide(labels, mode="random", duplicates=np.arange(50), seed=2)
    )


@pytest.mark.parametrize("seed", range(5))
def test_few_patients_of_a_class_still_come_to_train_and_test(seed):
    """Three ill patients of four images each: 1.2 images of test are theirs, yet it gets a whole patient."""
    labels = np.repeat([0, 1], [200, 12])
    part = splits.divide(labels, mode="random", groups=np.arange(212) // 4, seed=seed)
    assert table(labels, part)[1, [0, 2]].min() >= 4


def test_patients_with_images_of_both_classes():
    random = np.random.default_rng(1)
    labels, ids = random.integers(2, size=400), random.integers(80, size=400)
    part = splits.divide(labels, mode="random", ratios=(2, 1, 1), groups=ids)
    assert torn(ids, part) == []
    assert np.abs(table(labels, part) - np.bincount(labels)[:, None] * [0.5, 0.25, 0.25]).max() <= 5


# given parts


@pytest.fixture
def given():
    """120 for training, 30 for validation, 50 for testing, three classes, in mixed order."""
    part = np.repeat(["train", "val", "test"], [120, 30, 50])
    order = np.random.default_rng(3).permutation(200)
    return (np.arange(200) % 3)[order], part[order]


def test_a_complete_given_split_is_kept(given):
    labels, part = given
    found = splits.divide(labels, mode="given", given=part, groups=np.zeros(200), seed=1)
    np.testing.assert_array_equal(found, part)
    assert found is not part


def test_given_test_is_kept_and_the_rest_drawn_anew(given):
    labels, part = given
    found = splits.divide(labels, mode="given_test", given=list(part), ratios=(4, 1, 7))
    np.testing.assert_array_equal(found == "test", part == "test")
    assert [np.sum(found == p) for p in splits.PARTS] == [120, 30, 50]
    assert (found != part).any()


def test_a_missing_val_is_drawn_from_train(given):
    """No val: train is divided as 8:1, which is then just what given_test does."""
    labels, part = given
    part[part == "val"] = "train"
    found = splits.divide(labels, mode="given", given=part)
    np.testing.assert_array_equal(found == "test", part == "test")
    assert [np.sum(found == p) for p in splits.PARTS] == [133, 17, 50]
    np.testing.assert_array_equal(found, splits.divide(labels, mode="given_test", given=part))


def test_missing_parts_are_drawn_from_train_alone(given):
    labels, part = given
    part[part == "test"] = "train"
    found = splits.divide(labels, mode="given", given=part, ratios=(7, 1, 3))
    np.testing.assert_array_equal(found == "val", part == "val")
    assert [np.sum(found == p) for p in splits.PARTS] == [119, 30, 51]
    everything = np.full(200, "train")
    np.testing.assert_array_equal(
        splits.divide(labels, mode="given", given=everything), splits.divide(labels, mode="random")
    )
    kept = splits.divide(labels, mode="given", given=everything, ratios=(1, 0, 0))
    assert set(kept) == {"train"}


def test_random_ignores_what_was_given(given):
    labels, part = given
    np.testing.assert_array_equal(
        splits.divide(labels, mode="random", given=part), splits.divide(labels, mode="random")
    )


def test_copies_of_fixed_examples_stay_where_they_are_and_drawn_copies_together(given):
    """Everyone is a copy of someone in test; the drawn pairs are whole, the fixed part is as it was."""
    labels, part = given
    hashes = np.arange(200) % 20
    found = splits.divide(labels, mode="given_test", given=part, ratios=(1, 1, 1), duplicates=hashes)
    np.testing.assert_array_equal(found == "test", part == "test")
    drawn = part != "test"
    assert torn(hashes[drawn], found[drawn]) == []


# names and contents


def test_group_ids():
    names = ["train/person12_virus_3.jpeg", "person12_bacteria_4.jpeg", "person3_virus_1.jpeg"]
    assert splits.group_ids(names, r"person\d+").tolist() == ["person12", "person12", "person3"]
    assert splits.group_ids(names, r"person(\d+)_(\w+)").tolist() == ["12", "12", "3"]
    assert splits.group_ids([], "a").tolist() == []


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"person(\d+", "no regular expression"),
        (r"IM-(\d+)", "finds no id in the name 'person1.png'"),
        (r"person(\d+)|(x)", "finds no id in the name 'x.png'"),
        (r"z*", "finds no id in the name 'person1.png'"),
    ],
)
def test_a_pattern_that_finds_nothing_names_the_file(pattern, message):
    with pytest.raises(UserError, match=message) as error:
        splits.group_ids(["person1.png", "x.png"], pattern)
    assert "\n" not in str(error.value)


def test_content_hash_tells_values_types_and_shapes():
    x = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    found = splits.content_hash(np.concatenate([x, x[:1]]))
    assert found[0] == found[3]
    assert len(set(found.tolist())) == 3
    assert found[0] == hashlib.sha256(b"<f4(2, 2)" + x[0].tobytes()).hexdigest()[:16]
    others = [x[0], x[0].astype(np.float64), x[0].reshape(4), x[0].view(np.int32), x[0] + 1e-6]
    assert len(set(splits.content_hash(others).tolist())) == 5
    np.testing.assert_array_equal(
        splits.content_hash(x.transpose(0, 2, 1)), splits.content_hash(x.transpose(0, 2, 1).copy())
    )
    assert splits.content_hash(np.array([1, 1, 2]))[0] == splits.content_hash(np.array([1]))[0]


# mistakes

LABELS = np.arange(30) % 2
PART = np.repeat(["train", "val", "test"], 10)
MISTAKES = {
    "mode": (dict(mode="shuffle"), "'shuffle': choose one of given, given_test, random"),
    "two ratios": (dict(ratios=(8, 2)), "three numbers"),
    "negative ratio": (dict(ratios=(8, -1, 1)), "three numbers"),
    "no train": (dict(ratios=(0, 1, 1)), "train > 0"),
    "nan ratio": (dict(ratios=(8, float("nan"), 1)), "three numbers"),
    "text ratio": (dict(ratios="8:1:1"), "three numbers"),
    "negative seed": (dict(seed=-1), "negative"),
    "nothing given": (dict(mode="given"), "'given' needs data that come with parts"),
    "no test given": (dict(mode="given_test"), "'given_test' needs data"),
    "unknown part": (dict(mode="given", given=["train"] * 29 + ["dev"]), "part 'dev'"),
    "no given train": (dict(mode="given", given=["test"] * 30), "no train part"),
    "no given test": (dict(mode="given_test", given=["train"] * 30), "no test part"),
    "length of given": (dict(mode="given", given=["train"]), "given has 1 entries for 30"),
    "length of groups": (dict(groups=[1, 2]), "groups has 2 entries"),
    "length of duplicates": (dict(duplicates=[1, 2]), "duplicates has 2 entries"),
    "float classes": (dict(labels=np.ones(30)), "only integer labels can be stratified, not float64"),
    "no labels": (dict(labels=[]), "one label an example"),
    "one-hot": (dict(labels=np.eye(30, dtype=int)), r"shape \(30, 30\)"),
    "too few": (dict(labels=LABELS[:4]), "4 examples are too few for train, val, test as 8:1:1: "),
    "too few groups": (dict(groups=[0] * 29 + [1]), "30 examples in 2 groups are too few"),
    "class not in given test": (
        dict(mode="given", given=PART, labels=np.repeat([0, 1, 0], [5, 10, 15])),
        r"class 1 has no example in the test part \(10 in all\)",
    ),
    "class not in given train": (
        dict(mode="given", given=PART, labels=np.repeat([0, 7, 0], [20, 5, 5])),
        r"class 7 has no example in the train part \(5 in all\)",
    ),
    "class of one": (dict(labels=np.repeat([0, 1], [29, 1])), "class 1 has no example in the .* part .1 in"),
    "more classes than test": (dict(labels=np.arange(30) % 10), "no example in the test part"),
    "class not drawn": (dict(labels=np.repeat([0, 1], [28, 2]), groups=[*range(28), 0, 0]), "class 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line(name):
    changes, message = MISTAKES[name]
    arguments = {"labels": LABELS, "mode": "random", **changes}
    with pytest.raises(UserError, match=message) as error:
        splits.divide(arguments.pop("labels"), **arguments)
    assert "\n" not in str(error.value)


def test_classes_of_a_regression_are_not_looked_for():
    part = splits.divide(np.linspace(0, 1, 30), mode="given", given=PART, stratify=False)
    np.testing.assert_array_equal(part, PART)
