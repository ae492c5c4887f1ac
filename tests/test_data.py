"""The data sets that come with the package, and the checks that any data set passes."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from bnn_jax import data, views
from bnn_jax.data import digits
from bnn_jax.types import Dataset, Scaling, UserError


def rows(x) -> list[bytes]:
    return [np.ascontiguousarray(row).tobytes() for row in x]


def test_digits_is_a_split_of_all_images():
    """1,297 and 500 images: disjoint, complete, each with its own label, by the pixels of the original."""
    found = digits.load()
    assert found.x_train.shape == (1297, 8, 8, 1)
    assert found.x_test.shape == (500, 8, 8, 1)
    assert (found.x_train.dtype, found.y_train.dtype) == (np.float32, np.int32)
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    # standardised by one affine map, which leaves the rank of the grey values alone
    levels = np.unique(found.x_train)
    assert len(levels) == 17
    back = np.searchsorted(levels, np.concatenate([found.x_train, found.x_test])) / np.float32(16)
    pairs = lambda x, y: sorted(zip(rows(x.reshape(len(x), -1)), y.tolist(), strict=True))
    ours = pairs(back.astype(np.float32), np.concatenate([found.y_train, found.y_test]))
    assert ours == pairs(images, labels)
    np.testing.assert_allclose(data.to_images(found.x_test, found.scaling), back[1297:, ..., 0], atol=1e-6)


def test_digits_is_standardised_and_stratified():
    found = digits.load(seed=3)
    assert found.x_train.mean() == pytest.approx(0, abs=1e-5)
    assert found.x_train.std() == pytest.approx(1, abs=1e-5)
    assert found.num_classes == 10
    share = lambda y: np.bincount(y, minlength=10) / len(y)
    assert np.abs(share(found.y_train) - share(found.y_test)).max() < 1.5 / 500


def test_digits_split_is_a_function_of_the_seed():
    first, again, other = digits.load(seed=1), digits.load(seed=1), digits.load(seed=2)
    assert data.fingerprint(first) == data.fingerprint(again)
    assert first.ids == again.ids
    assert set(rows(first.x_test)) != set(rows(other.x_test))


def test_digits_takes_no_path():
    with pytest.raises(UserError, match="--path"):
        digits.load(Path("anywhere"))


def dataset(num_classes: int = 3, **changes) -> Dataset:
    x = np.ones((6, 2, 2, 1), np.float32)
    y = np.arange(6, dtype=np.int32) % num_classes if num_classes else np.linspace(0, 1, 6)
    parts = dict(x_train=x, y_train=y, x_test=x[:3], y_test=y[:3]) | changes
    scaling = Scaling(np.float32(0), np.float32(1))
    return Dataset(**parts, name="toy", num_classes=num_classes, description="", scaling=scaling)


def with_value(shape, value):
    x = np.ones(shape, np.float32)
    x.flat[1] = value
    return x


def test_sound_data_pass():
    for sound in (dataset(), dataset(num_classes=0)):
        assert data.check(sound) is sound


BAD = {
    "NaN input": (
        dict(x_train=with_value((6, 2, 2, 1), np.nan)),
        "training part: NaN or infinite values .1 ex",
    ),
    "infinite input": (dict(x_test=with_value((3, 2, 2, 1), np.inf)), "test part: NaN or infinite values"),
    "empty training": (dict(x_train=np.ones((0, 2, 2, 1)), y_train=np.ones(0, int)), "training part: no ex"),
    "empty test": (dict(x_test=np.ones((0, 2, 2, 1)), y_test=np.ones(0, int)), "test part: no examples"),
    "lengths": (dict(y_train=np.arange(5) % 3), "6 inputs but 5 targets"),
    "label too large": (dict(y_train=np.array([0, 1, 2, 3, 0, 1])), r"lie in 0\.\.2, found 0\.\.3"),
    "label negative": (dict(y_test=np.array([0, -1, 1])), r"test part: labels must lie in 0\.\.2, found -1"),
    "float labels": (dict(y_train=np.array([0.0, 1, 2, 0, 1, 2])), "must be integers, not float64"),
    "one class": (dict(y_train=np.zeros(6, int)), "one class only"),
    "NaN label": (dict(y_test=np.array([0.0, np.nan, 1])), "test part: NaN or infinite values"),
}


@pytest.mark.parametrize("name", BAD)
def test_unsound_data_are_told_in_one_line(name):
    changes, message = BAD[name]
    with pytest.raises(UserError, match=f"data set toy.*{message}") as error:
        data.check(dataset(**changes))
    assert "\n" not in str(error.value)


def test_unsound_targets_of_a_regression():
    with pytest.raises(UserError, match="NaN or infinite"):
        data.check(dataset(num_classes=0, y_train=with_value(6, np.inf)))


def test_a_limit_takes_some_of_each_part_in_their_order():
    whole = data.load(data.Options())
    some = data.load(data.Options(limit=200))
    assert (len(some.x_train), len(some.x_test), some.x_val) == (200, 200, None)
    assert some.description.endswith("at most 200 of each part")
    rows = [int(np.flatnonzero((whole.x_train == x).all((1, 2, 3)))[0]) for x in some.x_train]
    assert rows == sorted(rows)
    np.testing.assert_array_equal(some.y_train, whole.y_train[rows])
    assert [whole.ids["train"][row] for row in rows] == list(some.ids["train"])
    assert set(np.unique(some.y_train)) == set(range(10))
    other = data.load(data.Options(limit=200), seed=1)
    assert not np.array_equal(other.x_train, some.x_train)
    unchanged = data.load(data.Options(limit=10**6))
    np.testing.assert_array_equal(unchanged.x_train, whole.x_train)


def test_a_limit_that_leaves_one_class_is_refused():
    with pytest.raises(UserError, match="one class only"):
        data.load(data.Options(limit=1))


def test_a_view_is_standardised_like_any_images(monkeypatch):
    """By its own training part, and back to the view of the raw images."""
    rng = np.random.default_rng(0)
    raw = [rng.integers(0, 256, (n, 5, 5, 3), np.uint8) for n in (20, 6)]
    parts = [data.Part(x, np.arange(len(x)) % 2) for x in raw]
    whole = data.assemble("colours", *parts, num_classes=2, description="noise")
    monkeypatch.setattr(data, "_loader", lambda options: lambda path, seed: whole)
    assert data.load(data.Options()) is whole
    for view in ("hsv", "fourier"):
        found = data.load(data.Options(view=view))
        np.testing.assert_allclose(found.x_train.mean((0, 1, 2)), 0, atol=1e-5)
        np.testing.assert_allclose(found.x_train.std((0, 1, 2)), 1, atol=1e-5)
        wanted = views.apply(view, data.to_float(raw[1]))
        np.testing.assert_allclose(data.to_images(found.x_test, found.scaling), wanted, atol=1e-5)
        assert found.description == f"noise; view {view}"
        assert data.fingerprint(found) != data.fingerprint(whole)
    with pytest.raises(UserError, match="unknown view 'xyz': choose from"):
        data.load(data.Options(view="xyz"))


def test_a_view_needs_colours():
    with pytest.raises(UserError, match="--view hsv is for RGB images; digits has none"):
        data.load(data.Options(view="hsv"))
