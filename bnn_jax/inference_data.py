"""Chains as an ArviZ InferenceData file: netCDF with the groups `posterior` and `sample_stats`.

Written with xarray in InferenceData's layout, which every version of ArviZ reads
(`arviz.from_netcdf(path)`).
"""

from pathlib import Path

import jax
import numpy as np
import xarray as xr

from bnn_jax.trees import leaf_names
from bnn_jax.types import Params

STATS = {  # our trace names -> ArviZ's
    "accept_prob": "acceptance_rate",
    "num_steps": "n_steps",
    "log_joint": "lp",
}


def write(path: Path, draws: Params, trace: dict[str, np.ndarray]) -> None:
    """Write draws, leaves (C, D, ...), and their trace, name -> (C, D), to a netCDF file.

    A leaf `Conv_0/kernel` becomes the variable `Conv_0.kernel`.
    """
    posterior = {}
    for name, leaf in zip(leaf_names(draws), jax.tree.leaves(draws), strict=True):
        name = name.replace("/", ".")
        dims = ["chain", "draw", *(f"{name}_dim_{i}" for i in range(np.ndim(leaf) - 2))]
        posterior[name] = (dims, np.asarray(leaf))
    stats = {STATS.get(name, name): (["chain", "draw"], value) for name, value in trace.items()}
    if "diverging" in stats:
        stats["diverging"] = (["chain", "draw"], trace["diverging"] > 0)
    chains, number = next(iter(trace.values())).shape
    coords = {"chain": np.arange(chains), "draw": np.arange(number)}
    about = {"inference_library": "numpyro", "created_by": "bnn_jax"}
    tree = xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset(posterior, coords, about),
            "sample_stats": xr.Dataset(stats, coords, about),
        }
    )
    tree.to_netcdf(path, engine="h5netcdf")
