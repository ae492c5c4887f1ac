"""The JAX contestants of `peers.py`: ours by the path that a run takes, and each peer at its fastest.

"ours" is `models.method("vi", ...)` stepped by `loop.stepper`, which gathers its batches from shuffled
data, and `predict.build`, which also tells entropies and standard deviations: with sampled weights as the
peers have them, and with flipout, our default. NumPyro and BlackJAX take the loss of the whole data, N
times the others', to which Adam is blind, and ready slices as batches. Their draws are predicted by one
compiled pass each, called from Python: their own loops and maps over draws (`Predictive` for many samples
at once) are several times slower on CPU, see `bnn_jax.ops`.
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.stats import norm

from bnn_jax import loop, models, predict, trees
from bnn_jax.types import Batch


class NativeLeNet(nn.Module):
    """LeNet-5 as anybody would write it."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.max_pool(nn.relu(nn.Conv(6, (5, 5))(x)), (2, 2), (2, 2))
        x = nn.max_pool(nn.relu(nn.Conv(16, (5, 5), padding="VALID")(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(120)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(nn.relu(nn.Dense(84)(x)))


NET = NativeLeNet()


def ours(estimator):
    """`bnn_jax` with this estimator."""

    def build(given):
        model = models.build("lenet", 10, "isotropic")
        family = f"mean_field(init_std={given.std})"
        optimizer = optax.adam(given.learning_rate)
        settings = dict(posterior=family, estimator=estimator, optimizer=optimizer)
        algorithm = models.method("vi", model, len(given.x), **settings)
        key = jax.random.key(0)
        state, t = loop.start(key, algorithm, models.init(key, model, given.x)), 0
        data = Batch(given.x, given.y)
        advance = loop.stepper(key, algorithm, data, batch_size=given.batch_size)
        predictive = predict.build(model.apply, model.likelihood, predict.sampled(algorithm))
        info = {}

        def train(count):
            nonlocal state, t, info
            for first, last in loop.chunks(0, count, loop.CHUNK_SIZE):
                state, info = advance(state, t + first, t + last)
            t += count
            jax.block_until_ready(state)

        def kl():
            means, stds = (jax.device_get(jax.tree.leaves(a)) for a in deviations(state.phi))
            train(1)  # tells the KL before it
            return info["kl"], means, stds

        return train, lambda count: predictive((key, state), given.x_test, count).mean, kl

    return build


def deviations(phi):
    """Mean and standard deviation of a mean-field posterior."""
    return phi.mean, jax.tree.map(jax.nn.softplus, phi.rho)


def slices(given):
    """A function that gives the next batch, all of which are on the device from the start."""
    size = given.batch_size
    starts = range(0, len(given.x) - size + 1, size)
    ready = [jax.device_put((given.x[i : i + size], given.y[i : i + size])) for i in starts]
    every = itertools.cycle(ready)
    return lambda: next(every)


def cross_entropy(params, x, y):
    """Of a batch, its mean."""
    logits = NET.apply({"params": params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def functions(step, state, batch, predict, kl=None):
    """What a worker wants, from step(state, x, y), predict(state, count) and kl(state)."""

    def train(count):
        nonlocal state
        for _ in range(count):
            state = step(state, *batch())
        jax.block_until_ready(state)

    return train, lambda count: np.asarray(predict(state, count)), kl and (lambda: kl(state))


def one_by_one(outputs):
    """A predict(state, count) from the compiled outputs(state, i) of a draw."""
    one = jax.jit(lambda state, i: jax.nn.softmax(outputs(state, i)))
    return lambda state, count: sum(one(state, np.int32(i)) for i in range(count)) / count


def deterministic(given):
    """The plain network; a "draw" is a forward pass."""
    params, optimizer = start(given), optax.adam(given.learning_rate)

    @jax.jit
    def step(state, x, y):
        params, inner = state
        updates, inner = optimizer.update(jax.grad(cross_entropy)(params, x, y), inner)
        return optax.apply_updates(params, updates), inner

    x_test = jnp.asarray(given.x_test)
    outputs = lambda state, i: NET.apply({"params": state[0]}, x_test)
    return functions(step, (params, optimizer.init(params)), slices(given), one_by_one(outputs))


def start(given):
    """Initial weights."""
    return NET.init(jax.random.key(0), jnp.asarray(given.x[:1]))["params"]


def numpyro(given):
    """`random_flax_module`, `AutoNormal` and `TraceMeanField_ELBO`, whose KL is in closed form."""
    import numpyro as library
    from numpyro import distributions as dist
    from numpyro import infer
    from numpyro.contrib.module import random_flax_module

    num_data, x_test = len(given.x), jnp.asarray(given.x_test)

    def network():
        return random_flax_module("net", NET, dist.Normal(0, 1), input_shape=(1, *given.x.shape[1:]))

    def model(x, y=None):
        net = network()
        with library.plate("data", num_data, subsample_size=len(x)):
            library.sample("y", dist.Categorical(logits=net(x)), obs=y)

    def network_outputs(x):
        library.deterministic("outputs", network()(x))

    params, batch = start(given), slices(given)
    names = [f"net/{name.replace('/', '.')}" for name in trees.leaf_names(params)]
    begin = infer.init_to_value(values=dict(zip(names, jax.tree.leaves(params), strict=True)))
    guide = infer.autoguide.AutoNormal(model, init_loc_fn=begin, init_scale=given.std)
    elbo = infer.TraceMeanField_ELBO()
    svi = infer.SVI(model, guide, optax.adam(given.learning_rate), elbo)
    update = jax.jit(svi.update)
    state = svi.init(jax.random.key(0), *batch())

    def outputs(state, i):
        found = svi.get_params(state)
        one = infer.Predictive(network_outputs, guide=guide, params=found, num_samples=1)
        return one(jax.random.fold_in(jax.random.key(2), i), x_test)["outputs"][0]

    def kl(state):
        found = svi.get_params(state)
        sites = infer.TraceMeanField_ELBO(sum_sites=False)
        losses = sites.loss(jax.random.key(1), found, model, guide, *batch())
        ending = lambda end: [values for name, values in found.items() if name.endswith(end)]
        value = sum(float(loss) for name, loss in losses.items() if name != "y")
        return value, ending("_auto_loc"), ending("_auto_scale")

    return functions(lambda state, x, y: update(state, x, y)[0], state, batch, one_by_one(outputs), kl)


def blackjax(given):
    """`blackjax.vi.meanfield_vi`, whose KL is estimated from the draw."""
    from blackjax.vi import meanfield_vi as library

    optimizer, num_data, x_test = optax.adam(given.learning_rate), len(given.x), jnp.asarray(given.x_test)
    log_prior = lambda params: trees.tree_sum(jax.tree.map(norm.logpdf, params))
    params, key = start(given), jax.random.key(0)
    widths = jax.tree.map(lambda a: jnp.full_like(a, jnp.log(given.std)), params)
    state = library.init(params, optimizer)._replace(mu=params, rho=widths)

    @jax.jit
    def step(carry, x, y):
        state, t = carry
        log_joint = lambda params: log_prior(params) - num_data * cross_entropy(params, x, y)
        state, _ = library.step(jax.random.fold_in(key, t), state, log_joint, optimizer, num_samples=1)
        return state, t + 1

    def outputs(carry, i):
        draw = library.sample(jax.random.fold_in(key, i), carry[0])
        return NET.apply({"params": jax.tree.map(lambda a: a[0], draw)}, x_test)

    def kl(carry):
        _, info = library.step(key, carry[0], log_prior, optimizer, num_samples=30)
        stds = jax.tree.map(jnp.exp, carry[0].rho)
        return float(info.elbo), jax.tree.leaves(carry[0].mu), jax.tree.leaves(stds)

    return functions(step, (state, jnp.zeros((), jnp.int32)), slices(given), one_by_one(outputs), kl)


CONTESTANTS = {
    "ours": (("bnn_jax", "jax"), ours("sampling")),
    "ours, flipout": (("bnn_jax", "jax"), ours("flipout")),
    "flax, deterministic": (("flax", "jax"), deterministic),
    "numpyro": (("numpyro.contrib.module", "jax"), numpyro),
    "blackjax": (("blackjax.vi.meanfield_vi", "jax"), blackjax),
}
