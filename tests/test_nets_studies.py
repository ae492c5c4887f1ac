"""The networks of the studies: published and counted numbers of weights, sizes, and what a mistake says."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bnn_jax import estimators, ops, parts, trees
from bnn_jax.nets import inception
from bnn_jax.posteriors import mean_field
from bnn_jax.types import UserError

pytestmark = pytest.mark.usefixtures("quick_compile")

SMALL = {  # a small version of each: (name, smallest input)
    "vgg": ("vgg(width=4, hidden=6)", (32, 32, 1)),
    "inception": ("inception(width=0.125)", (33, 33, 1)),
    "blocks": ("blocks(widths=(3, 4), hidden=(6, 7), convs=2)", (4, 4, 1)),
    "conv1d": ("conv1d(filters=3, window=4, hidden=5)", (4,)),
    "resnet": ("resnet(depth=8, width=4)", (5, 5, 1)),
}


def shapes(name, shape, num_outputs=5):
    module = parts.find("network", name)(num_outputs)
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((2, *shape)))["params"]


def random_params(name, shape, num_outputs=5):
    rng = np.random.default_rng(0)
    random = lambda s: jnp.asarray(rng.standard_normal(s.shape) / np.sqrt(trees.fan_in(s)), jnp.float32)
    return jax.tree.map(random, shapes(name, shape, num_outputs))


def conv(channels, features, *window):
    return int(np.prod(window)) * channels * features + features


def convs(*widths):
    return sum(conv(a, b, 3, 3) for a, b in itertools.pairwise(widths))


def dense(*widths):
    return sum((a + 1) * b for a, b in itertools.pairwise(widths))


def resnet(depth, width, channels, outputs):
    """Convolutions with biases, and three numbers a channel for their norms."""
    blocks, total = (depth - 2) // 6, conv(channels, width, 3, 3) + 3 * width
    for a, b in [(width, width), (width, 2 * width), (2 * width, 4 * width)]:
        total += conv(a, b, 3, 3) + (2 * blocks - 1) * conv(b, b, 3, 3) + 2 * blocks * 3 * b
        total += (a != b) * (conv(a, b, 1, 1) + 3 * b)
    return total + dense(4 * width, outputs)


VGG = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG_CONVS = convs(3, *VGG)
XRAY_CONVS = convs(1, 32, 64, 128, 256, 512)


@pytest.mark.parametrize(
    ("name", "shape", "outputs", "count"),
    [
        ("vgg", (224, 224, 3), 1000, 138_357_544),  # published
        ("vgg", (224, 224, 3), 1000, VGG_CONVS + dense(7 * 7 * 512, 4096, 4096, 1000)),
        ("vgg(dense=False)", (224, 224, 3), 1000, 14_714_688 + 513 * 1000),
        ("vgg(hidden=9, width=64)", (32, 65, 3), 4, VGG_CONVS + dense(1 * 2 * 512, 9, 9, 4)),
        ("vgg(dense=False, width=2)", (40, 40, 3), 4, convs(3, *(w // 32 for w in VGG)) + dense(16, 4)),
        ("inception(norm='group')", (299, 299, 3), 1000, 23_834_568),  # published: scale and shift a channel
        ("inception", (299, 299, 3), 1000, 23_834_568 + 17_216),  # and tau for each of 17,216 channels
        ("blocks", (224, 224, 1), 2, XRAY_CONVS + dense(7 * 7 * 512, 2048, 2)),
        ("blocks", (224, 224, 1), 2, 52_954_370),
        ("blocks(widths=(32,), hidden=128)", (64, 64, 3), 2, 896 + dense(32 * 32 * 32, 128, 2)),
        ("blocks(widths=4, hidden=(), convs=3)", (6, 5, 1), 2, 40 + 2 * 148 + dense(3 * 2 * 4, 2)),
        ("conv1d", (20,), 2, 3 * 64 + dense(19 * 64, 32, 2)),
        ("conv1d(filters=5, window=4, hidden=6)", (30, 7), 2, 4 * 7 * 5 + 5 + dense(27 * 5, 6, 2)),
        ("resnet", (32, 32, 3), 10, 274_042),  # as Izmailov et al. have it
        ("resnet", (32, 32, 3), 10, resnet(20, 16, 3, 10)),
        ("resnet(depth=14, width=3)", (28, 28, 1), 7, resnet(14, 3, 1, 7)),
    ],
)
def test_number_of_weights(name, shape, outputs, count):
    assert trees.size(shapes(name, shape, outputs)) == count


@pytest.mark.parametrize("name", SMALL)
def test_smallest_inputs(name):
    text, least = SMALL[name]
    module = parts.find("network", text)(3)
    for shape in (least, (least[0] + 3, *least[1:])):
        outputs, variables = jax.eval_shape(
            lambda k, shape=shape: module.init_with_output(k, jnp.zeros((2, *shape))), jax.random.key(0)
        )
        assert outputs.shape == (2, 3)
        assert min(leaf.size for leaf in jax.tree.leaves(variables)) > 0


@pytest.mark.parametrize("name", SMALL)
def test_unfit_inputs_are_told_in_one_line(name):
    text, least = SMALL[name]
    below = (least[0] - 1, *least[1:])
    ranks = [(3, 3, 3, 1), ()] if name == "conv1d" else [(32 * 32,), (64, 64), (33, least[1] - 1, 1)]
    for shape in (below, *ranks):
        with pytest.raises(UserError, match=rf"^{name} needs \w+ \(B, .* not \(2,.*\)") as error:
            shapes(text, shape)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg(width=0)", "vgg needs widths of at least 1, not hidden=4096, width=0"),
        ("inception(norm='batch')", "inception has no norm 'batch': choose from frn, group"),
        ("inception(width=0)", "inception's width must be a positive number, not 0"),
        ("blocks(widths=(8, 0))", "blocks needs numbers of at least 1, not widths=(8, 0), "),
        ("blocks(convs=0)", "blocks needs numbers of at least 1, "),
        ("conv1d(window=0)", "conv1d needs numbers of at least 1, not filters=64, window=0, hidden=32"),
        ("resnet(depth=18)", "resnet needs a depth of 6 n + 2 (8, 14, 20, ...), not 18"),
        ("resnet(depth=2)", "resnet needs a depth of 6 n + 2 (8, 14, 20, ...), not 2"),
        ("resnet(width=-1)", "resnet needs a width of at least 1, not -1"),
    ],
)
def test_impossible_networks_are_told_in_one_line(name, message):
    with pytest.raises(UserError) as error:
        parts.find("network", name)(5)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def unit_outputs(module, shape):
    """The shapes of the outputs of all convolutions of an inception, norm and activation included."""

    def run(key):
        _, kept = module.init_with_output(key, jnp.zeros((1, *shape)), capture_intermediates=is_unit)
        return kept["intermediates"]

    is_unit = lambda layer, _: isinstance(layer, inception.Unit)
    kept = jax.eval_shape(run, jax.random.key(0))
    return [kept[f"Unit_{i}"]["__call__"][0].shape[1:] for i in range(len(kept))]


def test_inception_feature_maps():
    """94 convolutions; 2048 channels in the end; sides of 299 pixels halved five times, rounded up."""
    found = unit_outputs(inception.build(1000), (299, 299, 3))
    assert len(found) == 94
    assert sum(channels for *_, channels in found) == 17_216
    assert found[:5] == [(150, 150, 32), (150, 150, 32), (150, 150, 64), (75, 75, 80), (75, 75, 192)]
    assert {side for side, *_ in found[5:26]} == {38}
    assert [side for side, *_ in found[26:30]] == [19, 38, 38, 19]
    assert [side for side, *_ in found[70:76]] == [19, 10, 19, 19, 19, 10]
    assert {side for side, *_ in found[76:]} == {10}
    assert shapes("inception", (64, 64, 3), 7)["Dense_0"]["kernel"].shape == (2048, 7)
    assert unit_outputs(inception.build(5), (64, 64, 3))[-1] == (2, 2, 192)


@pytest.mark.parametrize("width", [0.125, 0.5, 1.5])
@pytest.mark.parametrize("norm", inception.NORMS)
def test_width_of_inception(norm, width):
    """Channels in proportion, in multiples of 8; a step of half rounds up."""
    found = [unit[-1] for unit in unit_outputs(inception.build(5, norm, width), (33, 33, 3))]
    full = [unit[-1] for unit in unit_outputs(inception.build(5, norm), (33, 33, 3))]
    assert found == [max(8, int(8 * np.floor(width * channels / 8 + 0.5))) for channels in full]


def test_inception_pooling():
    """Borders count the positions of the image only: a constant stays constant."""
    x = jnp.full((1, 5, 4, 2), -3.0)
    pool = lambda step: nn.apply(lambda net: net._run(x, (step,)), inception.build(5))({})
    np.testing.assert_allclose(pool("average"), x, rtol=1e-6)
    np.testing.assert_array_equal(pool("max"), x[:, :3, :2])


def test_group_normalised_unit():
    """Eight channels a group, centred and scaled over the positions of one example; then ReLU."""
    x = np.random.default_rng(1).standard_normal((2, 4, 3, 5)).astype(np.float32)
    unit = inception.Unit(16, (1, 1), 1, "group")
    params = unit.init(jax.random.key(0), x)["params"]
    params["GroupNorm_0"] = {"scale": jnp.linspace(0.5, 2, 16), "bias": jnp.linspace(-1, 1, 16)}
    groups = (x @ params["Conv_0"]["kernel"][0, 0]).reshape(2, 12, 2, 8)
    centred = groups - groups.mean((1, 3), keepdims=True)
    y = (centred / groups.std((1, 3), keepdims=True)).reshape(2, 4, 3, 16)
    expected = nn.relu(y * params["GroupNorm_0"]["scale"] + params["GroupNorm_0"]["bias"])
    np.testing.assert_allclose(unit.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-5)


def test_conv1d_against_its_formula():
    x = np.random.default_rng(1).standard_normal((3, 6)).astype(np.float32)
    name = "conv1d(filters=2, window=2, hidden=4)"
    params = random_params(name, (6,))
    conv, *layers = (params[layer] for layer in ("Conv_0", "Dense_0", "Dense_1"))
    kernel = np.asarray(conv["kernel"])[:, 0]  # (window, filters)
    maps = [x[:, i, None] * kernel[0] + x[:, i + 1, None] * kernel[1] + conv["bias"] for i in range(5)]
    hidden = nn.relu(np.stack(maps, 1)).reshape(3, 10)
    hidden = nn.relu(hidden @ layers[0]["kernel"] + layers[0]["bias"])
    expected = hidden @ layers[1]["kernel"] + layers[1]["bias"]
    apply = ops.apply_fn(parts.find("network", name)(5))
    np.testing.assert_allclose(apply(params, x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(apply(params, x[..., None]), apply(params, x))


def test_resnet_against_its_formula():
    """Three blocks written out: norm after each convolution, swish inside and after the sum."""
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 8, 9, 2)), jnp.float32)
    params = random_params("resnet(depth=8, width=3)", x.shape[1:])
    layers = iter(range(9))

    def conv(x, stride=1):
        number = next(layers)
        weights, norm = params[f"Conv_{number}"], params[f"FilterResponseNorm_{number}"]
        kernel, strides, order = weights["kernel"], (stride, stride), ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x, kernel, strides, "SAME", dimension_numbers=order) + weights["bias"]
        y = y / jnp.sqrt(jnp.mean(y**2, (1, 2), keepdims=True) + 1e-6)
        return jnp.maximum(norm["gamma"] * y + norm["beta"], norm["tau"])

    swish = lambda a: a / (1 + jnp.exp(-a))
    a = swish(conv(x))
    a = swish(a + conv(swish(conv(a))))
    for _ in range(2):
        inner = conv(swish(conv(a, 2)))
        a = swish(inner + conv(a, 2))
    expected = a.mean((1, 2)) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    outputs = ops.apply_fn(parts.find("network", "resnet(depth=8, width=3)")(5))(params, x)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_flipout_of_every_network(name):
    """An estimator that intercepts layers finds the weights of each in the tree."""
    text, least = SMALL[name]
    module, posterior = parts.find("network", text)(3), mean_field.build()
    estimate = estimators.build("flipout", module, posterior, 2, strategy="vmap")
    phi = jax.eval_shape(posterior.init, shapes(text, least, 3))
    outputs, _ = jax.eval_shape(estimate, jax.random.key(0), phi, jnp.zeros((4, *least)))
    assert outputs.shape == (2, 4, 3)


def test_the_signal_reaches_the_end_of_vgg():
    """Thirteen layers that halved the variance would leave a ten-thousandth of it."""
    module = parts.find("network", "vgg(dense=False, width=16)")(8)
    x = jax.random.normal(jax.random.key(0), (16, 32, 32, 3))
    outputs = module.apply(module.init(jax.random.key(1), x), x)
    assert 0.1 < float(outputs.std()) < 10
