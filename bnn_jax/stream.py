"""Data larger than memory: `Source`, an array of examples on disk, and `batches` read from it ahead of time.

    x_i = (raw_i - shift) / scale        raw_i in [0, 1], in float32

Nothing is approximated: every value is the one that `data.assemble` computes in memory, and the order is the
caller's, so that a run on streamed data takes the same steps as on data in memory.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bnn_jax import prepared
from bnn_jax.data import to_float
from bnn_jax.types import Batch, Scaling, UserError

NUM_THREADS = 8
CHUNK = 256  # examples that are in memory at once while the scaling is computed


class Source:
    """The examples of one part as a read-only array (N, ...) float32, decoded when they are asked for.

    It is indexed along the first axis alone, by an integer, a slice, or integers or booleans as NumPy's.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        length: int,
        read: Callable[[int], np.ndarray],
        shape: Sequence[int],
        scaling: Scaling,
        num_threads: int = NUM_THREADS,
        read_many: Callable[[list[int]], list[np.ndarray]] | None = None,
    ):
        """
        Args:
            length: N.
            read: i -> raw example i of 0..N-1: uint8 pixels or floats; called by several threads at once.
            shape: of one example.
            scaling: how to standardise.
            num_threads: threads that decode.
            read_many: the same for several, where that is faster; default: one after another.
        """
        self.shape = (length, *shape)
        self.scaling = scaling
        self._num_threads = num_threads
        self._read_many = read_many or (lambda rows: [read(row) for row in rows])
        self._shift, self._scale = (np.asarray(a, np.float32) for a in (scaling.shift, scaling.scale))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = self._rows(index)
        flat = rows.ravel()
        pieces = np.array_split(flat, min(self._num_threads, len(flat)) or 1)
        if len(pieces) == 1:
            out = self.take(flat)
        else:
            with ThreadPoolExecutor(len(pieces)) as pool:
                out = np.concatenate(list(pool.map(self.take, pieces)))
        return out.reshape(rows.shape + self.shape[1:])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if copy is False:
            raise ValueError("a Source is on disk: it can only be copied into memory")
        return self[:].astype(dtype or self.dtype, copy=False)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Examples `rows` (n,) of 0..N-1, read by the calling thread: (n, ...).

        Raises:
            UserError: an example has another shape than the source; whatever reading raises.
        """
        if len(rows) == 0:
            return np.empty((0, *self.shape[1:]), np.float32)
        raw = list(map(np.asarray, self._read_many(np.asarray(rows).tolist())))
        for row, example in zip(rows, raw, strict=True):
            if example.shape != self.shape[1:]:
                raise UserError(f"example {row} has the shape {example.shape}, not {self.shape[1:]}")
        out = to_float(np.stack(raw))
        out -= self._shift
        out /= self._scale
        return out

    def _rows(self, index):
        """The numbers of the examples that `index` means, of its shape."""
        every = range(len(self))
        if isinstance(index, slice):
            return np.array(every[index], np.int64)
        if isinstance(index, tuple):
            raise TypeError("a Source is indexed along its first axis alone: x[rows][:, ...]")
        if not isinstance(index, list | np.ndarray) and np.ndim(index) == 0:
            return np.array(every[operator.index(index)])
        rows = np.asarray(index)
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise IndexError(f"a mask of shape {rows.shape} for {len(self)} examples")
            return np.flatnonzero(rows)
        if rows.size == 0:
            return rows.astype(np.int64)
        if not np.issubdtype(rows.dtype, np.integer):
            raise TypeError(f"examples are numbered by integers, not {rows.dtype}")
        if rows.min() < -len(self) or rows.max() >= len(self):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of a Source of {len(self)} examples")
        return np.where(rows < 0, rows + len(self), rows)


def from_catalogue(
    name: str,
    part: str,
    path: Path | None = None,
    *,
    scaling: Scaling | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    num_threads: int = NUM_THREADS,
) -> Batch:
    """One part of a prepared data set: x a `Source`, y (N,) in memory, int32 or standardised float32.

    The part is read through once for y and, without `scaling`, for the moments of x; for other parts than
    train, give that of train: `from_catalogue(name, "test", scaling=train.x.scaling)`.

    Args:
        name, path, image_size, channels: as of `data.catalogue.load`.
        part: train, val or test, as prepared.
        scaling: how to standardise; default: by the mean and standard deviation of the pixels of a channel.

    Raises:
        UserError: as `prepared.find` and `prepared.open_folder`; no such part; images of several sizes.
    """
    found = prepared.open_folder(prepared.find(name, prepared.root(path)), image_size, channels)
    length = found.lengths.get(part, 0)
    if not length:
        there = ", ".join(part for part, number in found.lengths.items() if number) or "none"
        raise UserError(f"{found.full_name} has no examples of the part {part!r}; it has {there}")
    first = found.read(part, [0])[0]
    shape = first.x.shape

    def scan(start):
        """Targets of a chunk; mean and sum of squared deviations of its inputs, a channel."""
        examples = found.read(part, range(start, min(start + CHUNK, length)))
        for example in examples:
            if example.x.shape != shape:
                raise UserError(
                    f"the images of {found.full_name} differ in size: {first.id} is {shape}, {example.id} "
                    f"{example.x.shape}; pass --image-size to resize all of them"
                )
        y = np.array([example.y for example in examples])
        if scaling is not None:
            return y, 0, 0.0, 0.0
        x = to_float(np.stack([example.x for example in examples])).reshape(-1, shape[-1]).astype(np.float64)
        mean = x.mean(0)
        return y, len(x), mean, np.square(x - mean).sum(0)

    with ThreadPoolExecutor(num_threads) as pool:
        chunks = list(pool.map(scan, range(0, length, CHUNK)))
    y = np.concatenate([chunk[0] for chunk in chunks])
    if scaling is None:
        scaling = _scaling(chunks, y, regression=not found.class_names)
    if found.class_names:
        y = y.astype(np.int32)
    else:
        y = ((y - scaling.target_shift) / scaling.target_scale).astype(np.float32)
    read_many = lambda rows: [example.x for example in found.read(part, rows)]
    read = lambda row: read_many([row])[0]
    return Batch(Source(length, read, shape, scaling, num_threads, read_many), y)


def _scaling(chunks, y, regression):
    """The moments of all chunks from those of each (Chan et al. 1979), as `data.assemble` takes them."""
    _, counts, means, squares = (list(column) for column in zip(*chunks, strict=True))
    counts, means = np.array(counts, np.float64)[:, None], np.array(means)
    mean = (counts * means).sum(0) / counts.sum()
    variance = (np.sum(squares, 0) + (counts * np.square(means - mean)).sum(0)) / counts.sum()
    shift, scale = mean.astype(np.float32), np.sqrt(variance).astype(np.float32)
    scale = np.where(scale > 1e-7 * np.maximum(np.abs(shift), 1e-30), scale, np.float32(1))
    if not regression:
        return Scaling(shift, scale)
    spread = float(y.std())
    return Scaling(shift, scale, float(y.mean()), spread if spread > 0 else 1.0)


def batches(
    source: Any,
    targets: Any,
    rows: np.ndarray,
    *,
    num_threads: int = NUM_THREADS,
    prefetch: int = 8,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """The batches `start`, `start` + 1, ... of `rows`, read ahead; batch i holds the examples rows[i].

    Of several processes each gets its share of every batch, which are consecutive: joined in the order of the
    processes they are the batch. Threads end with the iterator: when it is exhausted, closed, or has raised.

    Args:
        source: a `Source` or an array (N, ...).
        targets: (N, ...).
        rows: (steps, batch_size) integers, as of `loop.order`.
        num_threads: threads that each read one batch.
        prefetch: batches that are read ahead.
        start: the first batch, as of a resumed run.
        process_index, process_count: which share of how many.

    Raises:
        UserError: the batch does not divide among the processes. Iterating raises whatever reading does.
    """
    rows = np.asarray(rows)
    if rows.ndim != 2:
        raise UserError(f"rows must be (steps, batch_size), not of shape {rows.shape}")
    if rows.shape[1] % process_count:
        raise UserError(f"a batch of {rows.shape[1]} does not split over {process_count} processes")
    if not 0 <= process_index < process_count or start < 0:
        raise UserError(f"no process {process_index} of {process_count} or no batch {start}")
    share = rows.shape[1] // process_count
    mine = rows[start:, process_index * share : (process_index + 1) * share]
    targets = np.asarray(targets)
    take = source.take if isinstance(source, Source) else lambda chosen: np.asarray(source[chosen])
    return _read_ahead(lambda i: Batch(take(mine[i]), targets[mine[i]]), len(mine), num_threads, prefetch)


def _read_ahead(read, length, num_threads, prefetch):
    import grain  # takes most of a second, and few runs stream

    if not length:
        return
    options = grain.ReadOptions(num_threads=min(num_threads, prefetch), prefetch_buffer_size=prefetch)
    iterator = iter(grain.MapDataset.range(length).map(read).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()
