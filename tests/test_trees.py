"""Operations on parameter pytrees."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnn_jax import noise as noises
from bnn_jax import ops, trees


def test_noise_is_the_draw_of_its_key_whatever_surrounds_it():
    """Cut from one draw; the same outside of jit, inside, under vmap and in a gradient."""
    key, tree = jax.random.key(3), {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    with jax.debug_key_reuse(True):
        noise = trees.normal_like(key, tree)
        compiled = jax.jit(trees.normal_like)(key, tree)
        keys = jax.random.split(key, 3)
        several = jax.vmap(trees.normal_like, (0, None))(keys, tree)
    drawn = noises.normal(jax.random.fold_in(key, 0), (7,))
    np.testing.assert_array_equal(jnp.concatenate([a.ravel() for a in jax.tree.leaves(noise)]), drawn)
    jax.tree.map(np.testing.assert_array_equal, noise, compiled)
    for i in range(3):
        one = trees.normal_like(jax.random.split(key, 3)[i], tree)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6), several, one)
    total = lambda scale: trees.tree_sum(jax.tree.map(lambda e: scale * e, trees.normal_like(key, tree)))
    np.testing.assert_allclose(jax.grad(total)(2.0), drawn.sum(), rtol=1e-6)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(ops.max_pool(nn.relu(nn.Conv(4, (3, 3))(x))).reshape(x.shape[0], -1))


def test_noise_is_not_computed_anew_at_every_pixel():
    """What a Bayesian gradient costs more than a plain one does not grow with the batch."""
    apply, like = ops.apply_fn(Net()), Net().init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))["params"]

    def plain(params, key, x):
        return jnp.sum(apply(params, x) ** 2)

    def bayesian(params, key, x):
        noise = trees.normal_like(key, params)
        return plain(jax.tree.map(lambda w, e: w + 0.1 * e, params, noise), key, x)

    def flops(f, rows):
        x = jnp.ones((rows, 8, 8, 1))
        with ops.outside_loops():
            compiled = jax.jit(jax.grad(f)).lower(like, jax.random.key(0), x).compile()
        return compiled.cost_analysis()["flops"]

    more = [flops(bayesian, rows) - flops(plain, rows) for rows in (32, 64)]
    assert more[1] == pytest.approx(more[0], rel=0.01)
