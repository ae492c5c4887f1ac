"""Streaming: what is read from disk is the array in memory, bit for bit and in the same order."""

import threading
import time

import jax
import numpy as np
import pytest
from test_data_catalogue import IMAGE, LABEL, pictures, stored, write

from bnn_jax import data, loop, stream
from bnn_jax.data import catalogue
from bnn_jax.types import Scaling, UserError

NUM, SHAPE = 50, (3, 4, 2)
SCALING = Scaling(np.float32([0.4, 0.5]), np.float32([0.2, 0.3]))
RAW = np.random.default_rng(0).integers(0, 256, (NUM, *SHAPE), np.uint8)
X = data.to_float(RAW)
X -= SCALING.shift
X /= SCALING.scale
Y = np.arange(NUM) % 3
ROWS = loop.order(jax.random.key(0), NUM, 8, 0, 15)


def read_raw(i):
    assert 0 <= i < NUM
    return RAW[i]


def source(read=read_raw, **settings):
    return stream.Source(NUM, read, SHAPE, SCALING, **settings)


def same(found, wanted):
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted, strict=True)


@pytest.mark.parametrize(
    "index",
    [
        0, -1, np.int32(7), slice(None), slice(3, 20, 4), slice(None, None, -1), slice(-5, None),
        slice(40, 99), slice(5, 5), [3, 1, 3], [], np.array([-1, 0, -50]), Y == 1,
        np.array([[1, 2, 3], [4, 5, 6]]), np.arange(NUM, dtype=np.int32),
    ],
    ids=str,
)  # fmt: skip
def test_indexed_like_the_array(index):
    same(np.asarray(source()[index]), X[np.asarray(index, int) if isinstance(index, list) else index])


def test_looks_like_the_array():
    found = source()
    assert (found.shape, found.ndim, found.size, len(found)) == (X.shape, X.ndim, X.size, NUM)
    assert found.dtype == X.dtype
    same(np.asarray(found), X)
    assert np.asarray(found, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="copied"):
        np.asarray(found, copy=False)


@pytest.mark.parametrize(
    ("index", "error"),
    [
        (NUM, IndexError),
        (-NUM - 1, IndexError),
        ([0, NUM], IndexError),
        ([-NUM - 1], IndexError),
        (np.ones(3, bool), IndexError),
        (1.0, TypeError),
        ([0.5], TypeError),
        ((0, 1), TypeError),
        (None, TypeError),
    ],
)
def test_what_is_no_index(index, error):
    with pytest.raises(error):
        source()[index]


def test_float_examples_and_several_at_once():
    floats = np.random.default_rng(1).random((NUM, *SHAPE))
    wanted = (floats.astype(np.float32) - SCALING.shift) / SCALING.scale
    same(source(lambda i: floats[i])[::3], wanted[::3])
    read_many = lambda rows: [RAW[i] for i in rows]
    same(source(None, read_many=read_many)[::3], X[::3])


def test_an_example_of_another_shape_is_told():
    with pytest.raises(UserError, match=r"example 2 has the shape \(2, 2\), not \(3, 4, 2\)"):
        source(lambda i: RAW[i] if i < 2 else np.zeros((2, 2)))[:]


@pytest.mark.parametrize(("num_threads", "prefetch"), [(1, 1), (8, 8), (8, 2), (2, 100)])
def test_batches_are_the_rows_in_memory(num_threads, prefetch):
    settings = dict(num_threads=num_threads, prefetch=prefetch)
    for given in (source(), X):
        found = list(stream.batches(given, Y, ROWS, **settings))
        assert len(found) == len(ROWS)
        for batch, rows in zip(found, ROWS, strict=True):
            same(batch.x, X[rows])
            same(batch.y, Y[rows])


def test_threads_that_finish_in_any_order_do_not_change_it():
    def slow(i):
        time.sleep(0.004 * (i % 3 == 0))
        return RAW[i]

    for batch, rows in zip(stream.batches(source(slow), Y, ROWS), ROWS, strict=True):
        same(batch.x, X[rows])


@pytest.mark.parametrize("start", [0, 1, 14, 15, 20])
def test_resumed(start):
    found = list(stream.batches(source(), Y, ROWS, start=start))
    assert len(found) == max(len(ROWS) - start, 0)
    for batch, rows in zip(found, ROWS[start:], strict=True):
        same(batch.x, X[rows])


def test_shares_of_processes_join_to_the_whole():
    shares = [list(stream.batches(source(), Y, ROWS, process_index=i, process_count=4)) for i in range(4)]
    for whole, *parts in zip(stream.batches(source(), Y, ROWS), *shares, strict=True):
        assert {len(part.y) for part in parts} == {2}
        same(np.concatenate([part.x for part in parts]), whole.x)
        same(np.concatenate([part.y for part in parts]), whole.y)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(process_count=3), "a batch of 8 does not split over 3 processes"),
        (dict(process_count=2, process_index=2), "no process 2 of 2"),
        (dict(start=-1), "no batch -1"),
        (dict(rows=ROWS[0]), r"rows must be \(steps, batch_size\), not of shape \(8,\)"),
    ],
)
def test_wrong_uses_are_told_at_once(settings, message):
    with pytest.raises(UserError, match=message):
        stream.batches(source(), Y, **{"rows": ROWS} | settings)


def reading():
    """Threads of grain that live, after up to 5 s for those that end."""
    deadline = time.monotonic() + 5
    while True:
        alive = [thread.name for thread in threading.enumerate() if "grain" in thread.name]
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.01)


def test_a_failing_reader_surfaces_in_its_turn_and_threads_end():
    bad = int(ROWS[4, 3])
    error = OSError(5, "the disk is gone")

    def read(i):
        if i == bad:
            raise error
        return RAW[i]

    first = next(step for step, rows in enumerate(ROWS) if bad in rows)
    found = stream.batches(source(read), Y, ROWS)
    for _ in range(first):
        next(found)
    with pytest.raises(OSError, match="the disk is gone") as caught:
        next(found)
    assert caught.value is error
    assert reading() == []
    with pytest.raises(OSError, match="the disk is gone"):
        source(read)[:]


def test_threads_end_when_closed_or_exhausted():
    found = stream.batches(source(), Y, ROWS)
    next(found)
    assert any("grain" in thread.name for thread in threading.enumerate())
    found.close()
    assert reading() == []
    assert len(list(stream.batches(source(), Y, ROWS))) == len(ROWS)
    assert reading() == []


def test_only_what_is_needed_is_read_ahead():
    read = []
    found = stream.batches(source(lambda i: (read.append(i), RAW[i])[1]), Y, ROWS, prefetch=2)
    next(found)
    found.close()
    assert reading() == []
    assert len(read) <= 3 * 8


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    examples = {part: stored(*pictures(count, seed=count)) for part, count in (("train", 600), ("test", 9))}
    write(root / "shapes" / "1.0.0", examples, {"image": IMAGE, "label": LABEL}, shards=3)
    return root


def test_from_catalogue_is_what_it_loads(root):
    memory = catalogue.load(root, name="shapes")
    train = stream.from_catalogue("shapes", "train", root)
    same(train.x.scaling.shift, memory.scaling.shift)
    same(train.x.scaling.scale, memory.scaling.scale)
    same(train.x[:], memory.x_train)
    same(train.y, memory.y_train)
    test = stream.from_catalogue("shapes", "test", root, scaling=train.x.scaling)
    same(test.x[:], memory.x_test)
    rows = loop.order(jax.random.key(1), 600, 32, 0, 5)
    for batch, chosen in zip(stream.batches(*train, rows), rows, strict=True):
        same(batch.x, memory.x_train[chosen])
    small = stream.from_catalogue("shapes", "test", root, image_size=2, channels=3, scaling=Scaling(0.0, 1.0))
    assert small.x[0].shape == (2, 2, 3)
    with pytest.raises(
        UserError, match=r"shapes 1.0.0 has no examples of the part 'val'; it has train, test"
    ):
        stream.from_catalogue("shapes", "val", root)
