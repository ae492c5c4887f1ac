"""Problems with known answers, shared by the tests."""

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bnn_jax import chains, diagnostics, estimators, objectives, ops
from bnn_jax.likelihoods import gaussian
from bnn_jax.posteriors import mean_field
from bnn_jax.priors import isotropic
from bnn_jax.types import Batch, UserError

SIGMAS = 5
MIN_ESS = 2000  # fewer effective draws could not tell right from wrong


class Linear(NamedTuple):
    """y = x w + noise, w ~ N(0, std^2): the posterior is N(mean, cov), exactly."""

    module: nn.Module  # one Dense layer without bias
    apply: object
    batch: Batch
    sigma: float  # known noise
    std: float  # of the prior
    mean: np.ndarray  # (F,)
    cov: np.ndarray  # (F, F)

    def params(self, w) -> dict:
        """A weight vector (F,) as the module's parameters."""
        return {"kernel": jnp.asarray(w, jnp.float32).reshape(-1, 1)}

    def log_joint(self) -> Callable:
        """Of all the data, as methods take it."""
        prior, likelihood = isotropic.build(self.std), gaussian.build(self.sigma)
        return objectives.log_joint(self.apply, prior, likelihood, len(self.batch.x))


def linear(
    num_data: int = 40, features: int = 3, sigma: float = 0.5, std: float = 1.0, seed: int = 0
) -> Linear:
    """Correlated inputs, so that the posterior's weights are correlated too."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((num_data, features)) @ (
        np.eye(features) + 0.6 * rng.random((features, features))
    )
    y = x @ rng.standard_normal(features) + sigma * rng.standard_normal(num_data)
    precision = x.T @ x / sigma**2 + np.eye(features) / std**2
    cov = np.linalg.inv(precision)
    module = nn.Dense(1, use_bias=False)
    return Linear(
        module,
        ops.apply_fn(module),
        Batch(x.astype(np.float32), y.astype(np.float32)),
        sigma,
        std,
        cov @ x.T @ y / sigma**2,
        cov,
    )


class ConvNet(nn.Module):
    """A small net with everything the estimators meet: strides, padding, a 1-D layer, a shared scale."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(4, (3, 3))(x))
        x = nn.tanh(nn.Conv(5, (2, 2), strides=2, padding="VALID")(x))
        x = x * self.param("scale", nn.initializers.ones_init(), (5,))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


def conv_problem(batch: int = 6):
    """`ConvNet`, its parameters and a batch of labelled 6x6 images."""
    x = jax.random.normal(jax.random.key(1), (batch, 6, 6, 2))
    y = jnp.arange(batch) % 3
    module = ConvNet()
    return module, module.init(jax.random.key(2), x)["params"], Batch(x, y)


def estimator_names() -> list[str]:
    """The names that `estimators.build` offers, from its own message."""
    try:
        estimators.build("", nn.Dense(1), mean_field.build(), 1)
    except UserError as error:
        return str(error).split("choose from ")[1].split(", ")
    raise AssertionError("an estimator without a name was built")


def load_script(name: str, folder: str = "scripts") -> ModuleType:
    """A file of `scripts` or `benchmarks` as a new module, known to `sys.modules` as tyro needs it."""
    path = Path(__file__).parent.parent / folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_script", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def agrees(values: np.ndarray, exact: np.ndarray) -> None:
    """The mean of `values` (C, D, n) is `exact` (n,) within `SIGMAS` Monte Carlo standard errors."""
    ess = np.minimum(diagnostics.ess_bulk(values), values.shape[0] * values.shape[1])
    assert np.all(ess > MIN_ESS), f"only {np.min(ess):.0f} effective draws"
    away = np.abs(values.mean((0, 1)) - exact) / (values.std((0, 1)) / np.sqrt(ess))
    assert np.all(away < SIGMAS), f"{np.max(away):.1f} standard errors from the exact value"


def agrees_with_moments(draws: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> None:
    """`draws` (C, D, n) have this mean and covariance, the covariance taken around the exact mean."""
    agrees(draws, mean)
    rows, columns = np.triu_indices(len(mean))
    centred = draws - mean
    agrees(centred[..., rows] * centred[..., columns], cov[rows, columns])


def run_chains(algorithm, starts, data, num_draws, num_warmup=200, thin=1, seed=0):
    """Draws (C, D, P) and the trace, each (C, D)."""
    blocks = list(
        chains.collect(
            jax.random.key(seed),
            algorithm,
            starts,
            data,
            num_warmup=num_warmup,
            num_draws=num_draws,
            thin=thin,
            block_size=math.gcd(num_warmup, num_draws),
        )
    )
    join = lambda *leaves: np.concatenate(leaves, 1)
    draws = jax.tree.map(join, *(block.draws for block in blocks))
    flat = [leaf.reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(draws)]
    return np.concatenate(flat, -1).astype(np.float64), jax.tree.map(join, *(block.trace for block in blocks))
