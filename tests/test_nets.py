"""Every network by name: shapes, gradients, no hidden randomness, and the sizes that the docs state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnn_jax import ops, parts, trees
from bnn_jax.types import UserError

INPUTS = ((28, 28, 1), (8, 8, 1), (32, 32, 3), (64, 64, 3), (64, 3), (20,))  # the first that a net accepts
NAMES = parts.names("network")
pytestmark = pytest.mark.usefixtures("quick_compile")


def fitting(module):
    """An input that the network accepts, and its parameters' shapes."""
    for shape in INPUTS:
        x = jnp.asarray(np.random.default_rng(0).standard_normal((2, *shape)), jnp.float32)
        try:
            return x, jax.eval_shape(module.init, jax.random.key(0), x)
        except UserError:
            continue
    raise AssertionError(f"none of the inputs {INPUTS} fits")


@pytest.mark.parametrize("name", NAMES)
def test_every_network(name):
    """One output a class, finite gradients that reach every leaf, the same output twice, and row by row: the
    output of an example does not depend on its batch."""
    module = parts.find("network", name)(5)
    x, variables = fitting(module)
    assert set(variables) == {"params"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    rng = np.random.default_rng(1)  # He's widths, without compiling an initialiser a leaf
    random = lambda s: jnp.asarray(rng.standard_normal(s.shape) * np.sqrt(2 / trees.fan_in(s)), jnp.float32)
    params = jax.tree.map(random, variables["params"])
    apply = ops.apply_fn(module)

    @jax.jit
    def outputs_and_grads(params, x):
        return apply(params, x), jax.grad(lambda p: jnp.mean(jnp.sin(apply(p, x))))(params)

    outputs, grads = outputs_and_grads(params, x)
    assert outputs.shape == (2, 5)
    assert outputs.dtype == jnp.float32
    for name, grad in zip(trees.leaf_names(grads), jax.tree.leaves(grads), strict=True):
        assert jnp.isfinite(grad).all(), name
        assert jnp.any(grad != 0), name
    np.testing.assert_array_equal(outputs_and_grads(params, x)[0], outputs)
    swapped = outputs_and_grads(params, jnp.stack([x[1], 10 * x[0]]))[0]
    np.testing.assert_allclose(swapped[0], outputs[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("lenet", (28, 28, 1), 61_706),
        ("digits", (8, 8, 1), 1_898),
        ("mlp", (28, 28, 1), 785 * 256 + 257 * 256 + 2570),
    ],
)
def test_number_of_weights(name, shape, count):
    module = parts.find("network", name)(10)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    assert trees.size(shapes) == count


def test_hidden_widths_of_the_mlp():
    module = parts.find("network", "mlp")(2, hidden=[7])
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 3)))["params"]
    assert jax.tree.map(lambda a: a.shape, shapes) == {
        "Dense_0": {"kernel": (3, 7), "bias": (7,)},
        "Dense_1": {"kernel": (7, 2), "bias": (2,)},
    }


@pytest.mark.parametrize(
    ("name", "shape"),
    [("digits", (3, 8, 1)), ("digits", (8, 8)), ("lenet", (28, 11, 1)), ("lenet", (784,))],
)
def test_unfit_inputs_are_told_in_one_line(name, shape):
    with pytest.raises(UserError, match=rf"^{name} needs images .*pixels, not \(2, .*\)") as error:
        jax.eval_shape(parts.find("network", name)(10).init, jax.random.key(0), jnp.zeros((2, *shape)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "shape"), [("digits", (4, 5, 2)), ("lenet", (12, 13, 1))])
def test_smallest_inputs(name, shape):
    module = parts.find("network", name)(3)
    x = jnp.zeros((2, *shape))
    shapes = jax.eval_shape(lambda k: module.init_with_output(k, x), jax.random.key(0))
    assert shapes[0].shape == (2, 3)
    assert min(leaf.size for leaf in jax.tree.leaves(shapes[1])) > 0
