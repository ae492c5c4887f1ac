"""Several processes that are one run: they join, take the same steps, and the first one writes.

Every process runs the same program on its own devices; what it computes alone (starts, orders of examples,
scores) is the same in all of them, as it depends on settings and keys only. All of them see one run folder,
on a file system that they share. With one process everything here does nothing.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bnn_jax.types import UserError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # what `srun` and `mpirun` tell each task


def join() -> None:
    """Join the other processes of the run, where the environment says that there are any; before JAX starts.

    Tasks of SLURM and Open MPI and hosts of a TPU slice are found by `jax.distributed`. Elsewhere, and on TPU
    hosts that are not told their names, `JAX_COORDINATOR_ADDRESS` (host:port of process 0) does it, with
    `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` where nothing else tells them.

    Raises:
        UserError: an address that is not host:port, a number that is none, or one that is missing.
    """
    address = os.environ.get(ADDRESS)
    several = any((_number(name) or 1) > 1 for name in TASKS)
    several |= "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if not (address or several):
        return
    if address and not address.rpartition(":")[2].isdigit():
        raise UserError(f"{ADDRESS} must be host:port of process 0, not {address!r}")
    try:
        jax.distributed.initialize(address, _number(COUNT), _number(INDEX))
    except ValueError as error:
        raise UserError(
            f"cannot join the other processes ({error}): set {COUNT} and {INDEX} beside {ADDRESS}"
        ) from None


def is_first() -> bool:
    """Whether this process writes files and speaks."""
    return jax.process_index() == 0


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """Process 0 runs the context's body before the others do: what it wrote there, they find."""
    if not is_first():
        _wait()
    try:
        yield
    finally:
        if is_first():
            _wait()


def agreed(row: dict[str, float]) -> dict[str, float]:
    """The row of process 0 in all of them: rounding that differs between machines must not make one stop
    early while the others wait for it."""
    if jax.process_count() == 1:
        return row
    words = np.array(list(row.values()), np.float64).view(np.uint32)  # JAX would round float64 off
    values = np.asarray(multihost_utils.broadcast_one_to_all(words)).view(np.float64)
    return {name: type(old)(new) for (name, old), new in zip(row.items(), values.tolist(), strict=True)}


def readable(tree: Any) -> Any:
    """`tree` with every leaf as a whole NumPy array in every process; as it is with one process, which can
    read it anyway."""
    return tree if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


def _wait():
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("bnn_jax")


def _number(name):
    value = os.environ.get(name)
    if value is not None and not value.isdigit():
        raise UserError(f"{name} must be a whole number, not {value!r}")
    return None if value is None else int(value)
