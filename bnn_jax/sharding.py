"""Devices: the one file that names meshes, shardings and `shard_map`.

One mesh with two axes serves everything: "sample" carries weight samples, ensemble members and chains,
"data" carries the examples of a batch. Axes are Auto: the compiler partitions a program written for one
device, and no part of the maths contains a collective. Chains are the exception: they run under
`shard_map`, so that chains on different devices neither communicate nor wait for each other.
"""

from collections.abc import Callable
from typing import Any

import jax
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
    """The mesh that spreads chains over as many devices as divide their number evenly."""
    fitting = [n for n in range(1, min(num_chains, jax.device_count()) + 1) if num_chains % n == 0]
    return make_mesh(max(fitting, default=1), 1)


def place(tree: Any, mesh: Mesh, axis: str | None = None) -> Any:
    """`tree` on the mesh: its leading axis split over `axis`, or replicated with None."""
    spec = PartitionSpec() if axis is None else PartitionSpec(axis)  # P(None) would refuse scalars
    return jax.device_put(tree, NamedSharding(mesh, spec))


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


def constrain(tree: Any, mesh: Mesh, axis: str) -> Any:
    """Inside jit: ask for the leading axis of `tree` to be split over `axis`."""
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, sharding), tree)


def over_samples(mesh: Mesh) -> Callable:
    """The estimators' strategy that spreads the S weight samples over the mesh's sample axis."""

    def strategy(f: Callable, xs: Any) -> Any:
        return constrain(jax.vmap(ops.in_loop(f))(constrain(xs, mesh, "sample")), mesh, "sample")

    return strategy


def over_chains(f: Callable, mesh: Mesh) -> Callable:
    """`f(shared, per_chain)` vmapped over the leading axis of `per_chain`, split over the sample axis.

    Args:
        f: (shared, per_chain) -> pytree, for one chain.
    """
    return jax.shard_map(
        jax.vmap(f, in_axes=(None, 0)),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("sample")),
        out_specs=PartitionSpec("sample"),
        check_vma=False,  # NumPyro's loops carry constants that it would call unvarying
    )
