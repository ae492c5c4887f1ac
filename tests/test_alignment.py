"""Permuted copies come back exactly, no function changes, small networks against all permutations."""

import itertools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnn_jax import alignment, ops
from bnn_jax.likelihoods import gaussian
from bnn_jax.nets import conv1d, digits, mlp, resnet
from bnn_jax.norms import FilterResponseNorm
from bnn_jax.types import UserError

pytestmark = pytest.mark.usefixtures("quick_compile")

IMAGE = (6, 6, 2)


class Plain(nn.Module):
    """Two convolutions, nine positions flattened, two dense layers."""

    activation: Callable

    @nn.compact
    def __call__(self, x):
        x = self.activation(nn.Conv(4, (3, 3), name="z")(x))
        x = self.activation(nn.Conv(5, (2, 2), strides=2, name="y")(x)).reshape(x.shape[0], -1)
        x = self.activation(nn.Dense(6, name="x")(x))
        return nn.Dense(3, name="a")(x)


class Normed(nn.Module):
    """Filter response norms behind convolutions, the first inside a module of its own."""

    @nn.compact
    def __call__(self, x):
        x = nn.swish(FilterResponseNorm()(nn.Conv(4, (3, 3))(x)))
        x = nn.tanh(FilterResponseNorm(threshold=False)(nn.Conv(4, (3, 3))(x)))
        return nn.Dense(3)(x.mean((1, 2)))


class Sequence(nn.Module):
    """Any functions of (module-making) x, one after another."""

    steps: tuple

    @nn.compact
    def __call__(self, x):
        for step in self.steps:
            x = step(x)
        return x


def dense(width: int, **kwargs) -> Callable:
    return lambda x: nn.Dense(width, **kwargs)(x)


def random_draws(rng, module, shape, lead=(2, 3)):
    """Independent normal weights, leaves (C, D, ...)."""
    like = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    return jax.tree.map(lambda a: rng.standard_normal((*lead, *a.shape)).astype(np.float32), like)


def first(draws):
    return jax.tree.map(lambda a: a[0, 0], draws)


def copies(rng, draws, flips):
    """Every draw of `Plain` in another order of its units, and with `flips` other signs; written by hand."""
    moved = jax.tree.map(np.copy, draws)
    lead = draws["a"]["bias"].shape[:2]
    for place in np.ndindex(lead):
        w = {name: {leaf: a[place] for leaf, a in layer.items()} for name, layer in moved.items()}
        for name, following, units in (("z", "y", 4), ("y", "x", 5), ("x", "a", 6)):
            order = rng.permutation(units)
            sign = rng.choice([-1, 1], units).astype(np.float32) if flips else np.ones(units, np.float32)
            w[name]["kernel"][:] = w[name]["kernel"][..., order] * sign
            w[name]["bias"][:] = w[name]["bias"][order] * sign
            kernel = w[following]["kernel"]
            if name == "y":  # channels are the fastest axis of the flattened positions
                by_position = kernel.reshape(9, units, -1)
                kernel[:] = (by_position[:, order] * sign[:, None]).reshape(kernel.shape)
            else:
                kernel[:] = kernel[..., order, :] * sign[:, None]
    return moved


def outputs(module, draws, x):
    """(C, D, B, ...)."""
    return jax.vmap(jax.vmap(ops.apply_fn(module), (0, None)), (0, None))(draws, x)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def inner(reference, draw) -> float:
    return sum(np.vdot(a, b) for a, b in zip(jax.tree.leaves(reference), jax.tree.leaves(draw), strict=True))


@pytest.mark.parametrize(("activation", "flips"), [(nn.swish, False), (nn.relu, False), (nn.tanh, True)])
class TestPlain:
    def test_copies_of_the_reference_come_back_exactly(self, activation, flips):
        rng, module = np.random.default_rng(0), Plain(activation)
        reference = first(random_draws(rng, module, IMAGE))
        same = jax.tree.map(lambda a: np.broadcast_to(a, (2, 3, *a.shape)), reference)
        moved = copies(rng, same, flips)
        x = rng.standard_normal((4, *IMAGE)).astype(np.float32)
        np.testing.assert_allclose(*(outputs(module, d, x) for d in (moved, same)), rtol=1e-4, atol=1e-4)
        assert not np.array_equal(moved["y"]["kernel"], same["y"]["kernel"])
        assert_equal(alignment.align(alignment.symmetries(module, IMAGE), moved, reference), same)

    def test_no_function_changes(self, activation, flips):
        rng, module = np.random.default_rng(1), Plain(activation)
        draws = random_draws(rng, module, IMAGE)
        reference = first(random_draws(rng, module, IMAGE))
        aligned = alignment.align(alignment.symmetries(module, IMAGE), draws, reference)
        x = rng.standard_normal((4, *IMAGE)).astype(np.float32)
        before, after = outputs(module, draws, x), outputs(module, aligned, x)
        np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-4 * np.abs(before).max())
        for c, d in np.ndindex(2, 3):
            one = lambda tree, c=c, d=d: jax.tree.map(lambda a: a[c, d], tree)
            assert inner(reference, one(aligned)) > inner(reference, one(draws))

    def test_all_copies_of_a_draw_give_the_same(self, activation, flips):
        rng, module = np.random.default_rng(2), Plain(activation)
        draws = random_draws(rng, module, IMAGE)
        reference = first(random_draws(rng, module, IMAGE))
        symmetry = alignment.symmetries(module, IMAGE)
        aligned = alignment.align(symmetry, draws, reference)
        assert_equal(alignment.align(symmetry, copies(rng, draws, flips), reference), aligned)
        assert all(a.dtype == np.float32 for a in jax.tree.leaves(aligned))


@pytest.mark.parametrize(("activation", "signs"), [(nn.relu, [1]), (nn.tanh, [1, -1])])
def test_one_hidden_layer_reaches_the_largest_inner_product(activation, signs):
    """4! permutations and 2^4 signs, tried one by one."""
    rng = np.random.default_rng(3)
    module = Sequence((dense(4), activation, dense(2)))
    draws, reference = random_draws(rng, module, (3,)), first(random_draws(rng, module, (3,)))
    aligned = alignment.align(alignment.symmetries(module, (3,)), draws, reference)
    for place in np.ndindex(2, 3):
        w = jax.tree.map(lambda a, place=place: a[place], draws)
        best = -np.inf
        for order in itertools.permutations(range(4)):
            for flip in itertools.product(signs, repeat=4):
                order, flip = list(order), np.array(flip)
                kernel, bias = w["Dense_0"]["kernel"][:, order] * flip, w["Dense_0"]["bias"][order] * flip
                behind = w["Dense_1"] | {"kernel": w["Dense_1"]["kernel"][order] * flip[:, None]}
                moved = {"Dense_0": {"kernel": kernel, "bias": bias}, "Dense_1": behind}
                best = max(best, inner(reference, moved))
        assert inner(reference, jax.tree.map(lambda a, p=place: a[p], aligned)) == pytest.approx(best)


def test_two_hidden_layers_beside_all_permutations():
    """4!^2 of them: a local maximum only, but the largest one for most of 40 unrelated draws."""
    rng = np.random.default_rng(4)
    module = Sequence((dense(4), nn.relu, dense(4), nn.relu, dense(2)))
    draws = random_draws(rng, module, (3,), (1, 40))
    reference = first(random_draws(rng, module, (3,)))
    aligned = alignment.align(alignment.symmetries(module, (3,)), draws, reference)
    one, two, three = (draws[f"Dense_{i}"] for i in range(3))
    best = np.full(40, -np.inf)
    for p, q in itertools.product(map(list, itertools.permutations(range(4))), repeat=2):
        moved = {
            "Dense_0": {"kernel": one["kernel"][..., p], "bias": one["bias"][..., p]},
            "Dense_1": {"kernel": two["kernel"][..., p, :][..., q], "bias": two["bias"][..., q]},
            "Dense_2": {"kernel": three["kernel"][..., q, :], "bias": three["bias"]},
        }
        best = np.maximum(best, products(reference, moved))
    found = products(reference, aligned)
    assert (found <= best + 1e-4).all()
    assert np.mean(found >= best - 1e-4) > 0.5


def products(reference, draws):
    """Inner products (D,) of the draws of one chain."""
    parts = jax.tree.map(lambda r, a: (a[0] * r).reshape(a.shape[1], -1).sum(axis=1), reference, draws)
    return sum(jax.tree.leaves(parts))


def patterns(module, shape):
    """The patterns of signs of each hidden layer, sets of tuples."""
    return [{tuple(p) for p in layer.signs} for layer in alignment.symmetries(module, shape).layers]


def test_which_signs_may_flip():
    """Kernel, bias, (norm's vectors,) next kernel."""
    for activation in (nn.swish, nn.relu, nn.softplus, nn.sigmoid):
        assert patterns(Sequence((dense(5), activation, dense(2))), (3,)) == [{(1, 1, 1)}]
    for activation in (nn.tanh, nn.soft_sign, jnp.sin):
        assert patterns(Sequence((dense(5), activation, dense(2))), (3,)) == [{(1, 1, 1), (-1, -1, -1)}]
    assert patterns(Sequence((dense(5), jnp.cos, dense(2))), (3,)) == [{(1, 1, 1), (-1, -1, 1)}]  # even
    pooled = Sequence(
        (lambda x: ops.max_pool(nn.tanh(nn.Conv(4, (3, 3))(x))), lambda x: x.mean((1, 2)), dense(2))
    )
    assert patterns(pooled, IMAGE) == [{(1, 1, 1)}]  # the largest of -x is not minus the largest of x
    centred = Sequence((dense(5), lambda x: nn.tanh(nn.LayerNorm()(x)), dense(2)))
    assert patterns(centred, (3,)) == [{(1, 1, 1, 1, 1), (1, 1, -1, -1, -1)}]  # vectors: bias, scale


def test_norms_move_along():
    """Kernel and gamma may flip together under any activation; tanh allows beta and what follows, too."""
    rng, module = np.random.default_rng(5), Normed()
    symmetry = alignment.symmetries(module, IMAGE)
    swish, tanh = patterns(module, IMAGE)  # kernel, bias, beta, gamma, (tau,) next kernel
    assert swish == {(1, 1, 1, 1, 1, 1), (-1, -1, 1, -1, 1, 1)}
    assert tanh == {(1, 1, 1, 1, 1), (-1, -1, 1, -1, 1), (-1, -1, -1, 1, -1), (1, 1, -1, -1, -1)}
    reference = first(random_draws(rng, module, IMAGE))
    moved, order = jax.tree.map(np.copy, reference), [2, 0, 3, 1]
    for name, leaves in (("Conv_0", ("kernel", "bias")), ("FilterResponseNorm_0", ("beta", "gamma", "tau"))):
        for leaf in leaves:
            moved[name][leaf] = moved[name][leaf][..., order]
    moved["Conv_1"]["kernel"] = moved["Conv_1"]["kernel"][:, :, order]
    for name, leaf in (("Conv_0", "kernel"), ("Conv_0", "bias"), ("FilterResponseNorm_0", "gamma")):
        moved[name][leaf][..., 1] *= -1
    for name, leaf in (("Conv_1", "kernel"), ("Conv_1", "bias"), ("FilterResponseNorm_1", "beta")):
        moved[name][leaf][..., 2] *= -1
    moved["Dense_0"]["kernel"][2] *= -1
    draw = jax.tree.map(lambda a: a[None, None], moved)
    x = rng.standard_normal((4, *IMAGE)).astype(np.float32)
    apply = ops.apply_fn(module)
    np.testing.assert_allclose(apply(moved, x), apply(reference, x), rtol=1e-3, atol=1e-5)
    assert_equal(first(alignment.align(symmetry, draw, reference)), reference)


@pytest.mark.parametrize(
    ("module", "shape", "layers"),
    [
        (digits.build(10), (8, 8, 1), [("Conv_0", 8), ("Conv_1", 16)]),
        (conv1d.build(2, filters=6, hidden=5), (7,), [("Conv_0", 6), ("Dense_0", 5)]),
        (gaussian.LearnedNoise(mlp.build(1, (4, 3))), (5,), [("net/Dense_0", 4), ("net/Dense_1", 3)]),
        (Sequence((dense(1, use_bias=False), nn.relu, dense(2))), (3,), [("Dense_0", 1)]),
        (nn.Dense(3), (4,), []),
    ],
)
def test_networks_of_the_package(module, shape, layers):
    rng = np.random.default_rng(6)
    symmetry = alignment.symmetries(module, shape)
    assert [(layer.name, layer.units) for layer in symmetry.layers] == layers
    assert all(len(layer.signs) == 1 for layer in symmetry.layers)
    draws, reference = random_draws(rng, module, shape), first(random_draws(rng, module, shape))
    x = rng.standard_normal((4, *shape)).astype(np.float32)
    before = outputs(module, draws, x)
    after = outputs(module, alignment.align(symmetry, draws, reference), x)
    np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-4 * np.abs(before).max())


class Skip(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(5)(x))
        return nn.Dense(2)(x + nn.relu(nn.Dense(5)(x)))


class Shared(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(5)
        return nn.Dense(2)(nn.relu(layer(nn.relu(layer(x)))))


class Scaled(nn.Module):
    """A vector of the network's own, all ones at first: only other values tell that it matters."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(5)(x)) * self.param("scale", nn.initializers.ones, (5,))
        return nn.Dense(2)(x)


@pytest.mark.parametrize(
    ("module", "shape", "what"),
    [
        (Skip(), (4,), "'Dense_0' changes"),
        (Shared(), (5,), "'Dense_0' changes"),
        (Scaled(), (4,), "'Dense_0' changes"),
        (resnet.build(3, depth=8, width=4), (8, 8, 1), "changes the network's function"),
        (Sequence((dense(4), lambda x: nn.GroupNorm(2)(x), dense(2))), (3,), "'Dense_0' changes"),
        (Sequence((dense(4), lambda x: jnp.cumsum(x, -1), dense(2))), (3,), "'Dense_0' changes"),
        (Sequence((dense(4), lambda x: x[:, :2], nn.relu, dense(2))), (3,), "'Dense_0' changes"),
        (Sequence((dense(4), lambda x: nn.BatchNorm(True)(x), dense(2))), (3,), "batch_stats"),
        (Sequence((lambda x: nn.DenseGeneral(4)(x), dense(2))), (3,), "belongs to no Dense or Conv"),
    ],
)
def test_other_networks_are_refused(module, shape, what):
    with pytest.raises(UserError, match=what) as error:
        alignment.symmetries(module, shape)
    assert "\n" not in str(error.value)


def test_procrustes_mean_undoes_permutations():
    """Noisy copies of one network: their aligned spread is that of the noise, around the network."""
    rng, module = np.random.default_rng(7), Plain(nn.tanh)
    truth = first(random_draws(rng, module, IMAGE))
    noise = random_draws(rng, module, IMAGE, (2, 10))
    noisy = jax.tree.map(lambda w, e: (w + 0.1 * e).astype(np.float32), truth, noise)
    draws, symmetry = copies(rng, noisy, flips=True), alignment.symmetries(module, IMAGE)
    mean, aligned = alignment.procrustes_mean(symmetry, draws)
    assert_equal(alignment.align(symmetry, draws, mean), aligned)
    assert_equal(alignment.align(symmetry, aligned, truth), noisy)
    centre = jax.tree.map(lambda a: a.mean(axis=(0, 1))[None, None], noisy)
    found = alignment.align(symmetry, jax.tree.map(lambda a: a[None, None], mean), truth)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, centre)


def test_procrustes_mean_depends_on_no_copy():
    """What other chains see as another mode is the same after the first draw has set the order."""
    rng, module = np.random.default_rng(8), Plain(nn.relu)
    draws, symmetry = random_draws(rng, module, IMAGE), alignment.symmetries(module, IMAGE)
    moved = copies(rng, draws, flips=False)
    moved = jax.tree.map(lambda m, a: np.concatenate([a[:1], m[1:]]), moved, draws)
    assert_equal(alignment.procrustes_mean(symmetry, moved), alignment.procrustes_mean(symmetry, draws))


def test_draws_that_do_not_fit():
    rng, module = np.random.default_rng(9), Sequence((dense(4), nn.relu, dense(2)))
    symmetry, draws = alignment.symmetries(module, (3,)), random_draws(rng, module, (3,))
    reference = first(draws)
    with pytest.raises(UserError, match=r"the reference: Dense_0/bias is \(2, 3, 4\)"):
        alignment.align(symmetry, draws, draws)
    with pytest.raises(UserError, match=r"draws: Dense_0/bias is \(4,\)"):
        alignment.align(symmetry, reference, reference)
    with pytest.raises(UserError, match="another network, Dense_0/bias, Dense_0/kernel"):
        alignment.align(symmetry, {"Dense_0": draws["Dense_0"]}, reference)
    draws["Dense_1"]["bias"][1, 2, 0] = np.nan
    with pytest.raises(UserError, match="Dense_1/bias is not finite"):
        alignment.procrustes_mean(symmetry, draws)
