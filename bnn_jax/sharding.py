"""Devices: the one file that names meshes, shardings and `shard_map`.

One mesh with two axes serves everything: "sample" carries weight samples, ensemble members and chains,
"data" carries the examples of a batch. Axes are Auto: the compiler partitions a program written for one
device, and no part of the maths contains a collective. Chains are the exception: they run under
`shard_map` over "sample", so that chains on different devices neither communicate nor wait for each other;
within a chain "data" stays Auto, so that devices share its data.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bnn_jax import ops
from bnn_jax.types import UserError


def make_mesh(num_sample: int = 1, num_data: int | None = None) -> Mesh:
    """A ("sample", "data") mesh.

    Args:
        num_sample: devices along the sample axis.
        num_data: devices along the data axis; None takes all that are left.

    Raises:
        UserError: more devices are asked for than there are, or not a positive number.
    """
    count = jax.device_count()
    num_data = max(count // max(num_sample, 1), 1) if num_data is None else num_data
    if min(num_sample, num_data) < 1 or num_sample * num_data > count:
        raise UserError(f"a mesh of {num_sample} x {num_data} devices does not fit the {count} there are")
    devices = jax.devices()[: num_sample * num_data]
    return jax.make_mesh(
        (num_sample, num_data), ("sample", "data"), axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def chain_mesh(num_chains: int) -> Mesh:
    """The mesh that spreads chains over as many devices as divide their number evenly, and the data of each
    over those that are left. Of several processes it takes every device."""
    count = jax.device_count()
    whole = jax.process_count() == 1
    fitting = [
        n for n in range(1, min(num_chains, count) + 1) if num_chains % n == 0 and (whole or count % n == 0)
    ]
    return make_mesh(max(fitting, default=1), None if _apart() else 1)


def batch_mesh(batch_size: int) -> Mesh | None:
    """The mesh that splits a batch over as many devices as divide it evenly; None where that is one. Of
    several processes it takes every device, whether it divides or not."""
    if not _apart():
        return None
    count = jax.device_count()
    if jax.process_count() == 1:
        count = max(n for n in range(1, count + 1) if batch_size % n == 0)
    return make_mesh(1, count) if count > 1 else None


def _apart():
    """Whether devices compute apart. Those of a CPU are threads on the same cores: splitting examples over
    them gains nothing."""
    return jax.default_backend() != "cpu" or jax.process_count() > 1


def place(tree: Any, mesh: Mesh, axis: str | None = None) -> Any:
    """`tree` on the mesh: its leading axis split over `axis`, or replicated with None. Several processes pass
    the same tree."""
    spec = PartitionSpec() if axis is None else PartitionSpec(axis)  # P(None) would refuse scalars
    sharding = NamedSharding(mesh, spec)

    def put(a):
        if mesh.is_multi_process and getattr(a, "is_fully_addressable", True):
            return jax.make_array_from_callback(np.shape(a), sharding, np.asarray(a).__getitem__)
        return jax.device_put(a, sharding)

    return jax.tree.map(put, tree)


def place_examples(tree: Any, mesh: Mesh) -> Any:
    """Examples on the mesh, split over its data axis where it divides their number, else replicated."""
    even = all(a.shape[0] % mesh.shape["data"] == 0 for a in jax.tree.leaves(tree))
    return place(tree, mesh, "data" if even else None)


def local(tree: Any) -> Any:
    """The copies of replicated arrays on this process's first device of their mesh."""
    return jax.tree.map(lambda a: a.addressable_data(0) if isinstance(a, jax.Array) else a, tree)


def assemble(tree: Any, mesh: Mesh) -> Any:
    """A batch split over the mesh's data axis, from the share that each process holds of it.

    Raises:
        UserError: the data axis is not split over the processes, so that their shares would be copies.
    """
    count = jax.process_count()
    if mesh.local_mesh.shape["data"] * count != mesh.shape["data"]:
        raise UserError(
            f"each of {count} processes reads its share of a batch: split the mesh's data axis over them, "
            f"not its sample axis; it has {mesh.shape['sample']} x {mesh.shape['data']} devices"
        )
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), tree)


def constrain(tree: Any, mesh: Mesh | None, axis: str | None) -> Any:
    """Inside jit: the leading axis of `tree` is split over `axis`, evenly or not, and the others as the
    compiler likes; with None all of it is replicated. `mesh` is None inside `over_chains`, which knows it."""

    def hint(a):
        free = [PartitionSpec.UNCONSTRAINED] * (a.ndim - 1)  # else they would be gathered over the other axis
        spec = PartitionSpec() if axis is None else PartitionSpec(axis, *free)
        return jax.lax.with_sharding_constraint(a, spec if mesh is None else NamedSharding(mesh, spec))

    return jax.tree.map(hint, tree)


def over_examples(step: Callable, mesh: Mesh) -> Callable:
    """`step(state, t, batch, ...)` -> (state, info) with its batch split over the data axis and its state on
    every device. What it traces is told: `ops.split`."""

    def split(state, t, batch, *rest):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            state, info = step(state, t, constrain(batch, mesh, "data"), *rest)
            return constrain(state, mesh, None), info

    return split


def over_samples(mesh: Mesh) -> Callable:
    """The estimators' strategy that spreads the S weight samples over the mesh's sample axis."""

    def strategy(f: Callable, xs: Any) -> Any:
        return constrain(jax.vmap(ops.in_loop(f))(constrain(xs, mesh, "sample")), mesh, "sample")

    return strategy


def over_chains(f: Callable, mesh: Mesh) -> Callable:
    """`f(shared, per_chain)` for each entry of the leading axis of `per_chain`, split over the sample axis.
    The data axis is left to the compiler: see `constrain`.

    A device's only chain runs as if it were alone: under `vmap` its products and loops would carry an axis
    of one, which may take twice the time (docs/performance.md). Several on a device are vmapped.

    Args:
        f: (shared, per_chain) -> pytree, for one chain.
    """

    @functools.wraps(f)  # its name is the compiled program's
    def on_device(shared, per_chain):
        if jax.tree.leaves(per_chain)[0].shape[0] > 1:
            return jax.vmap(f, in_axes=(None, 0))(shared, per_chain)
        alone = f(shared, jax.tree.map(lambda a: a[0], per_chain))
        return jax.tree.map(lambda a: a[None], alone)

    return jax.shard_map(
        on_device,
        mesh=mesh,
        axis_names={"sample"},
        in_specs=(PartitionSpec(), PartitionSpec("sample")),
        out_specs=PartitionSpec("sample"),
        check_vma=False,  # NumPyro's loops carry constants that it would call unvarying
    )
