r"""Streaming posterior predictive: memory independent of the number of draws and of the data.

    p(y | x, D) = 1/D sum_d p(y | x, w_d)
    classification: total entropy H[p] = aleatoric E_d H[p_d] + epistemic (mutual information of y, w)
    regression:     total variance     = aleatoric E_d sigma_d^2 + epistemic Var_d mean_d

The sums run over draws inside one compiled loop and over the data in batches; the loop's length is an
argument, so that no number of draws compiles again. Where convolutions are slow in loops (`ops`), the draws
are taken one by one from Python instead, each for a batch in blocks whose activations stay in the cache.
(Depeweg et al., arXiv:1710.07283)
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnn_jax import metrics, ops
from bnn_jax.types import Algorithm, Likelihood, Params, UserError

BLOCK = 32  # points at a time, of those that a draw taken from Python predicts: in a core's own cache


class Predictive(NamedTuple):
    """NumPy arrays, one row a point; K is absent for regression."""

    mean: np.ndarray  # (T, K) probabilities, or (T,) means
    std: np.ndarray  # the same shape: standard deviation over draws
    total: np.ndarray  # (T,) nats, or variance
    aleatoric: np.ndarray  # (T,)
    epistemic: np.ndarray  # (T,)


class Tangent(NamedTuple):
    """A draw that predicts by the network's tangent: f(x; centre) + J(x) (params - centre)."""

    centre: Params
    params: Params


def stacked(draws: Params, i: jax.Array) -> Params:
    """The i-th of stacked draws, leaves (D, ...): a `draw` for `build`."""
    return jax.tree.map(lambda a: a[i], draws)


def sampled(algorithm: Algorithm) -> Callable:
    """Fresh draws of a method's last state, a distribution: a `draw` for `build` whose source is
    (key, state)."""

    def draw(source, i):
        key, state = source
        params = algorithm.sample(jax.random.fold_in(key, i), state)
        return Tangent(algorithm.linearise_at(state), params) if algorithm.linearise_at else params

    return draw


def members(algorithm: Algorithm, size: int) -> Callable:
    """As `sampled` for an ensemble's state, leaves (size, ...): draw i is one of member i mod size."""
    one = sampled(algorithm)
    return lambda source, i: one((source[0], jax.tree.map(lambda a: a[i % size], source[1])), i)


def outputs(apply: Callable, draw: Params | Tangent, x: jax.Array) -> jax.Array:
    """What the network, or its tangent, gives at a draw."""
    if not isinstance(draw, Tangent):
        return apply(draw, x)
    away = jax.tree.map(jnp.subtract, draw.params, draw.centre)
    value, change = jax.jvp(lambda params: apply(params, x), (draw.centre,), (away,))
    return value + change


def build(
    apply: Callable,
    likelihood: Likelihood,
    draw: Callable,
    batch_size: int = 500,
    over: Callable = lambda f: f,
) -> Callable:
    """A predictive function that is compiled once a shape. Build it once and keep it.

    Args:
        apply: (params, x) -> outputs.
        draw: (source, i) -> params of draw i, or a `Tangent`; see `stacked`, `sampled` and `members`.
        batch_size: points in one pass; the last pass is padded.
        over: what turns a prediction for network inputs into one for `x`, an average over the crops of an
            image say (`augment.over_crops`).

    Returns:
        (source, x, num_draws) -> Predictive.
    """

    moments = _moments(apply, likelihood, over)
    draw_one, of_block = jax.jit(draw), _outside_loops(moments)

    def add(found, i, carry):  # Welford, on the float32 that accelerators have
        (value, noise_i), (mean, squares, noise) = found, carry
        delta = value - mean
        mean = mean + delta / (i + 1)
        return mean, squares + delta * (value - mean), noise + (noise_i - noise) / (i + 1)

    def zeros(found):
        value, noise = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), found)
        return value, jnp.zeros_like(value), noise

    @partial(jax.jit, donate_argnums=2)
    def add_blocks(found, i, carry):
        return add(jax.tree.map(lambda *a: jnp.concatenate(a), *found), i, carry)

    @jax.jit
    def add_all(source, x, num_draws):
        found = jax.eval_shape(lambda: moments(draw(source, 0), x))
        body = lambda i, carry: add(moments(draw(source, i), x), i, carry)
        return jax.lax.fori_loop(0, num_draws, body, zeros(found))

    def accumulate(source, x, num_draws):
        blocks = equal_parts(x, BLOCK)
        traced = _traced(of_block, draw_one, source, blocks[0])
        if not ops.slow_in_loops(traced.jaxpr):
            mean, squares, noise = add_all(source, x, num_draws)
            return mean, squares / num_draws, noise
        blocks = jax.device_put(blocks)  # once, not for every draw
        whole = lambda a: jax.ShapeDtypeStruct((len(blocks) * a.shape[0], *a.shape[1:]), a.dtype)
        carry = zeros(jax.tree.map(whole, traced.out_info))
        for i in map(np.int32, range(num_draws)):
            params = draw_one(source, i)
            carry = add_blocks([of_block(params, block) for block in blocks], i, carry)
        mean, squares, noise = joined([carry], len(x))
        return mean, squares / num_draws, noise

    def predictive(source: Any, x: Any, num_draws: int) -> Predictive:
        if num_draws < 1:
            raise UserError(f"num_draws must be at least 1, not {num_draws}")
        mean, variance, aleatoric = in_batches(
            lambda part: accumulate(source, part, num_draws), x, batch_size
        )
        if likelihood.task == "classification":
            total = metrics.entropy(mean)
            epistemic = np.maximum(total - aleatoric, 0)  # Jensen: negative by rounding only
        else:
            epistemic = variance
            total = aleatoric + epistemic
        return Predictive(mean, np.sqrt(variance), total, aleatoric, epistemic)

    return predictive


def build_each(apply: Callable, likelihood: Likelihood, batch_size: int = 500) -> Callable:
    """Predictions draw by draw, for comparisons and diagnostics on a test set: memory grows with D.

    Returns:
        (draws: leaves (D, ...), x, centre of their tangent or None) -> `Likelihood.mean` (D, T, K) or (D, T)
        and `Likelihood.noise` (D, T).
    """

    def draw(source, i):
        draws, centre = source
        params = stacked(draws, i)
        return params if centre is None else Tangent(centre, params)

    mixture = build_mixture(apply, likelihood, draw, batch_size)
    number = lambda draws: jax.tree.leaves(draws)[0].shape[0]
    return lambda draws, x, centre=None: mixture((draws, centre), x, number(draws))


def build_mixture(
    apply: Callable,
    likelihood: Likelihood,
    draw: Callable,
    batch_size: int = 500,
    over: Callable = lambda f: f,
) -> Callable:
    """What each draw predicts, for densities that a mean alone does not give; arguments as of `build`.

    Returns:
        (source, x, num_draws) -> `Likelihood.mean` (D, T) or (D, T, K) and `Likelihood.noise` (D, T).
    """

    moments = _moments(apply, likelihood, over)
    draw_one, of_block = jax.jit(draw), _outside_loops(moments)

    @partial(jax.jit, static_argnums=2)
    def all_(source, x, num_draws):
        return jax.lax.map(lambda i: moments(draw(source, i), x), jnp.arange(num_draws))

    def each(source, x, num_draws):
        blocks, found = equal_parts(x, BLOCK), []
        if not ops.slow_in_loops(_traced(of_block, draw_one, source, blocks[0]).jaxpr):
            return jax.tree.map(lambda a: np.moveaxis(a, 0, 1), jax.device_get(all_(source, x, num_draws)))
        blocks = jax.device_put(blocks)
        for i in map(np.int32, range(num_draws)):
            params = draw_one(source, i)
            found.append(joined([of_block(params, block) for block in blocks], len(x)))
        return jax.tree.map(lambda *a: np.stack(a, axis=1), *found)

    def mixture(source: Any, x: Any, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
        found = in_batches(lambda part: each(source, part, num_draws), x, batch_size)
        return jax.tree.map(lambda a: np.moveaxis(a, 0, 1), found)

    return mixture


def _moments(apply, likelihood, over):
    """(params, x) -> mean and noise of what a draw predicts."""

    def moments(params, x):
        def of_inputs(x):
            found = outputs(apply, params, x)
            return likelihood.mean(found), likelihood.noise(found)

        return over(of_inputs)(x)

    return moments


def _outside_loops(moments):
    """`moments` for a draw and a block taken from Python."""

    @jax.jit
    def of_block(params, x):
        with ops.outside_loops():
            return moments(params, x)

    return of_block


def _traced(of_block, draw_one, source, block):
    return of_block.trace(jax.eval_shape(draw_one, source, np.int32(0)), block)


def in_batches(f: Callable, x: Any, batch_size: int) -> Any:
    """`f` on equal batches of `x` (an array, or a `stream.Source`), the last one padded by repetition;
    results joined, as NumPy."""
    size = min(batch_size, len(x))
    parts = (padded(np.asarray(x[start : start + size]), size) for start in range(0, len(x), size))
    return joined([f(part) for part in parts], len(x))


def equal_parts(x: np.ndarray, most: int) -> list[np.ndarray]:
    """(T, ...) in as few equal parts of at most `most` rows as there can be, the last one padded by
    repetition."""
    size = -(-len(x) // -(-len(x) // most))
    return [padded(x[start : start + size], size) for start in range(0, len(x), size)]


def padded(x: np.ndarray, size: int) -> np.ndarray:
    """(T, ...) with the last row repeated, (size, ...)."""
    return np.concatenate([x, np.repeat(x[-1:], size - len(x), 0)])


def joined(parts: Sequence[Any], size: int) -> Any:
    """Pytrees of rows as one, on the host, without the padding after `size` rows."""
    return jax.tree.map(lambda *a: np.concatenate(a)[:size], *jax.device_get(list(parts)))
