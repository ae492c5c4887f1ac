r"""Rank-1 networks: point kernels times random vectors, one over inputs and one over outputs of each layer.

    W_l = M_l * (s_l r_l^T),   q(s_l), q(r_l) mean-field Gaussian,   p(s_l) = p(r_l) = N(1, prior_std^2)
    maximise (1/N) [ E_q log p(D | W) + log p(M) - KL(q || p) ]      over M and q

Units are turned up and down together, which costs a share of the weights that mean field needs and leaves the
directions within a unit without uncertainty. A convolution's inputs are its channels. The prior of this model
is not that of the other methods: M keeps it, as a penalty, and the vectors have their own (Dusenberry et al.,
arXiv:2005.07186, with one component; several are an ensemble, whose members do not share M).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bnn_jax.trees import at, normal_like, put, tree_sum
from bnn_jax.types import Algorithm, Batch, Info, Key, Likelihood, Params, Prior, positive


class RankOneState(NamedTuple):
    params: Params  # M
    mean: Any  # of s and r: a list of pairs, in the order of the layers
    rho: Any  # the same: std = softplus(rho)
    optimizer: Any


def build(
    apply: Callable,
    layers: Sequence[tuple[str, ...]],
    likelihood: Likelihood,
    prior: Prior,
    num_data: int,
    optimizer: optax.GradientTransformation,
    prior_std: float = 0.1,
    init_std: float = 0.05,
) -> Algorithm:
    """A rank-1 network.

    Args:
        apply: (params, x) -> outputs.
        layers: paths of the dense and convolutional layers; see `ops.layers`.
        prior: of M.
        num_data: N; the loss is divided by it, so that learning rates do not depend on N.
        optimizer: any optax transformation.
        prior_std: of the vectors' prior around 1.
        init_std: of the vectors' posterior at the start.

    Raises:
        UserError: a standard deviation is not positive.
    """
    for name, value in (("prior_std", prior_std), ("init_std", init_std)):
        positive(f"rank_one's {name}", value)

    def init(key: Key, params: Params) -> RankOneState:
        shapes = [at(params, (*path, "kernel")).shape[-2:] for path in layers]
        mean = [(jnp.ones(inputs), jnp.ones(outputs)) for inputs, outputs in shapes]
        rho = jax.tree.map(lambda a: jnp.full_like(a, jnp.log(jnp.expm1(init_std))), mean)
        return RankOneState(params, mean, rho, optimizer.init((params, mean, rho)))

    def draw(key: Key, params: Params, mean: Any, rho: Any) -> Params:
        vectors = jax.tree.map(lambda m, r, e: m + jax.nn.softplus(r) * e, mean, rho, normal_like(key, mean))
        for path, (s, r) in zip(layers, vectors, strict=True):
            kernel = (*path, "kernel")
            params = put(params, kernel, at(params, kernel) * s[:, None] * r)
        return params

    def kl(mean: Any, rho: Any) -> jax.Array:
        def one(m, r):
            ratio = jax.nn.softplus(r) / prior_std
            return 0.5 * (ratio**2 + ((m - 1) / prior_std) ** 2 - 1) - jnp.log(ratio)

        return tree_sum(jax.tree.map(one, mean, rho))

    def step(key: Key, state: RankOneState, batch: Batch) -> tuple[RankOneState, Info]:
        def loss(learned):
            params, *q = learned
            nll = -jnp.mean(likelihood.log_prob(apply(draw(key, params, *q), batch.x), batch.y))
            divergence = kl(*q)
            return nll + (divergence - prior.log_prob(params)) / num_data, {"nll": nll, "kl": divergence}

        learned = (state.params, state.mean, state.rho)
        (_, info), grads = jax.value_and_grad(loss, has_aux=True)(learned)
        updates, opt_state = optimizer.update(grads, state.optimizer, learned)
        return RankOneState(*optax.apply_updates(learned, updates), opt_state), info

    def sample(key: Key, state: RankOneState) -> Params:
        return draw(key, state.params, state.mean, state.rho)

    return Algorithm(init, step, sample)
