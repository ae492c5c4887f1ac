"""Every form of the curvature against Jacobians written out, and Laplace against exact posteriors."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from problems import ConvNet, conv_problem, linear
from scipy import special
from scipy.stats import multivariate_normal

from bnn_jax import balance, curvature, loop, objectives, ops, trees
from bnn_jax.infer import laplace
from bnn_jax.likelihoods import bernoulli, categorical, gaussian
from bnn_jax.priors import isotropic, student_t
from bnn_jax.types import Batch, UserError

SIGMAS = 5
PROBLEM = linear()
RNG = np.random.default_rng(0)

pytestmark = pytest.mark.usefixtures("quick_compile")


# Fisher information of the outputs


def fisher(likelihood, outputs, y):
    root = np.asarray(likelihood.fisher_root(outputs, y), np.float64)
    root = root.reshape(len(root), len(outputs), -1)
    return np.einsum("rbo,rbp->bop", root, root)


def scores(likelihood, outputs, y):
    """d log p(y_b | outputs_b) / d outputs_b."""
    return np.asarray(jax.grad(lambda o: likelihood.log_prob(o, y).sum())(outputs)).reshape(len(y), -1)


def test_the_fisher_information_of_classes_is_an_expectation_over_them():
    outputs = jnp.asarray(2 * RNG.standard_normal((5, 3)), jnp.float32)
    probs = special.softmax(outputs, -1)
    want = 0
    for k in range(3):
        s = scores(categorical.build(), outputs, jnp.full(5, k))
        want += probs[:, k, None, None] * s[:, :, None] * s[:, None]
    np.testing.assert_allclose(fisher(categorical.build(), outputs, jnp.zeros(5, int)), want, atol=1e-6)
    one = outputs[:, :1]
    p = special.expit(one)[..., None]
    np.testing.assert_allclose(fisher(bernoulli.build(), one, None), p * (1 - p), rtol=1e-5)
    np.testing.assert_allclose(fisher(bernoulli.build(), one[:, 0], None), p * (1 - p), rtol=1e-5)


def test_the_fisher_information_of_targets_is_an_expectation_over_them():
    """By Gauss-Hermite quadrature, exact for the polynomials that scores of a Gaussian are."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    outputs = jnp.asarray(0.5 * RNG.standard_normal((5, 2)), jnp.float32)
    for likelihood, given, sigma in (
        (gaussian.build(), outputs, np.exp(outputs[:, 1])),
        (gaussian.build(0.4), outputs[:, :1], 0.4),
        (gaussian.build(0.4), outputs[:, 0], 0.4),
    ):
        want = 0
        for node, weight in zip(nodes, weights / weights.sum(), strict=True):
            s = scores(likelihood, given, jnp.asarray(outputs[:, 0] + sigma * node))
            want += weight * s[:, :, None] * s[:, None]
        np.testing.assert_allclose(fisher(likelihood, given, None), want, rtol=1e-4, atol=1e-5)


def test_class_weights_multiply_it_and_the_focal_loss_has_none():
    outputs = jnp.asarray(RNG.standard_normal((5, 3)), jnp.float32)
    y, weights = jnp.asarray([0, 1, 2, 1, 0]), np.array([0.5, 2.0, 3.0])
    plain = fisher(categorical.build(), outputs, y)
    weighted = fisher(balance.weighted(categorical.build(), weights), outputs, y)
    np.testing.assert_allclose(weighted, weights[y][:, None, None] * plain, rtol=1e-5, atol=1e-7)
    assert balance.focal(categorical.build(), 2.0).fisher_root is None


# The forms


def conv_forms():
    module, params, batch = conv_problem()
    layers = ops.layers(module, batch.x.shape[1:])
    apply = ops.apply_fn(module)
    build = lambda form: curvature.build(form, apply, module, categorical.build(), layers)
    return build, apply, params, batch


def written_out(apply, params, batch):
    """(P, P) from the Jacobian of the outputs."""
    flat, unravel = ravel_pytree(params)
    outputs = lambda w: apply(unravel(w), batch.x)
    jacobian = np.asarray(jax.jacrev(outputs)(flat), np.float64)
    inner = fisher(categorical.build(), outputs(flat), batch.y)
    return np.einsum("bop,boq,bqr->pr", jacobian, inner, jacobian, optimize=True) / len(batch.x)


def places(params):
    """The range of each leaf in the flat vector."""
    ends = np.cumsum([leaf.size for leaf in jax.tree.leaves(params)])
    return [slice(e - leaf.size, e) for e, leaf in zip(ends, jax.tree.leaves(params), strict=True)]


def dense(form, found, params, number, tau, widths=None):
    """(number C + tau diag(1/widths^2))^-1 from what `spectrum` and `turn` say."""
    widths = widths or jax.tree.map(jnp.ones_like, params)
    spectrum = form.spectrum(found, widths)
    flat, unravel = ravel_pytree(spectrum.values)

    def column(e):
        v = jax.tree.map(lambda e, a: e / jnp.sqrt(number * a + tau), unravel(e), spectrum.values)
        return ravel_pytree(jax.tree.map(jnp.multiply, form.turn(spectrum.basis, v, params), widths))[0]

    root = np.asarray(jax.vmap(column)(jnp.eye(len(flat))), np.float64)
    return root.T @ root


def test_the_whole_and_its_parts():
    """Whole, last layer and diagonal are the Jacobian's; so are the blocks of the biases."""
    build, apply, params, batch = conv_forms()
    want = written_out(apply, params, batch)
    found = build("full").measure(params, batch)
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-6)
    diagonal = build("diagonal").measure(params, batch)
    np.testing.assert_allclose(
        np.concatenate([np.ravel(a) for a in diagonal]), np.diag(want), rtol=1e-3, atol=1e-7
    )
    ranges = dict(zip(["/".join(map(str, k)) for k in _paths(params)], places(params), strict=True))
    last = np.r_[ranges["Dense_0/bias"], ranges["Dense_0/kernel"]]
    np.testing.assert_allclose(
        build("last_layer").measure(params, batch), want[np.ix_(last, last)], rtol=1e-3, atol=1e-6
    )
    factors = dict(zip(ranges, build("kronecker").measure(params, batch), strict=True))
    for name in ("Conv_0/bias", "Conv_1/bias", "Dense_0/bias"):
        np.testing.assert_allclose(factors[name][0], want[ranges[name], ranges[name]], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(factors["scale"], np.diag(want)[ranges["scale"]], rtol=1e-3, atol=1e-7)


def _paths(params):
    return [[p.key for p in path] for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]


class Sees(nn.Module):
    """One convolution whose places are summed, and a layer in its own name."""

    window: tuple = (3, 2)
    strides: int = 1
    padding: str = "VALID"

    @nn.compact
    def __call__(self, x):
        return nn.Conv(2, self.window, strides=self.strides, padding=self.padding)(x).sum((1, 2))


def test_kronecker_factors_of_one_place_are_exact():
    """A window as large as the image, one example, one output direction: C is the product itself."""
    module = Sees(window=(4, 5))
    x = jnp.asarray(RNG.standard_normal((1, 4, 5, 3)), jnp.float32)
    params = module.init(jax.random.key(0), x)["params"]
    apply = ops.apply_fn(module)
    likelihood = gaussian.build()  # mean and log sigma; the second has no curvature from the first
    form = curvature.build("kronecker", apply, module, likelihood, ops.layers(module, x.shape[1:]))
    whole = curvature.build("full", apply, module, likelihood, ops.layers(module, x.shape[1:]))
    batch = Batch(x, jnp.zeros(1))
    bias, (a, g) = form.measure(params, batch)
    want = np.asarray(whole.measure(params, batch))
    kernel = places(params)[1]
    np.testing.assert_allclose(np.kron(a, g), want[kernel, kernel], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bias[0], want[places(params)[0]][:, places(params)[0]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"strides": 2}, {"padding": "SAME"}])
def test_kronecker_factors_by_hand(settings):
    """A: products of what the window sees, summed over places; G: of the gradients, averaged."""
    module = Sees(**settings)
    x = jnp.asarray(RNG.standard_normal((3, 5, 6, 2)), jnp.float32)
    params = module.init(jax.random.key(0), x)["params"]
    form = curvature.build(
        "kronecker", ops.apply_fn(module), module, categorical.build(), ops.layers(module, x.shape[1:])
    )
    _, (a, g) = form.measure(params, Batch(x, jnp.zeros(3, int)))
    layer = nn.Conv(12, (3, 2), strides=module.strides, padding=module.padding, use_bias=False)
    rows = np.asarray(layer.apply({"params": {"kernel": jnp.eye(12).reshape(3, 2, 2, 12)}}, x))
    rows = rows.reshape(3, -1, 12)
    np.testing.assert_allclose(a, np.einsum("bti,btj->ij", rows, rows) / 3, rtol=1e-4)
    # The sum over places gives every place the gradient of the output.
    inner = fisher(categorical.build(), module.apply({"params": params}, x), None)
    np.testing.assert_allclose(g, inner.mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", curvature.FORMS)
def test_the_spectrum_gives_the_covariance(form):
    """Draws have the covariance (N C + tau / s^2)^-1, C as the form has it, each leaf of its own width."""
    build, _, params, batch = conv_forms()
    own = build(form)
    found = own.measure(params, batch)
    widths = {name: w for name, w in zip(params, (0.5, 1.5, 0.7, 2.0), strict=True)}
    widths = {
        name: jax.tree.map(lambda a, w=w: jnp.full_like(a, w), params[name]) for name, w in widths.items()
    }
    number, tau = 30, 1.3
    got = dense(own, found, params, number, tau, widths)
    flat = np.asarray(ravel_pytree(widths)[0], np.float64)
    c = np.zeros((len(flat), len(flat)))
    if form == "full":
        c = np.asarray(found, np.float64)
    elif form == "last_layer":
        names = ["/".join(k) for k in _paths(params)]
        inside = np.concatenate(
            [np.arange(r.start, r.stop) for n, r in zip(names, places(params), strict=True) if "Dense" in n]
        )
        c[np.ix_(inside, inside)] = found
    else:
        for place, entry in zip(places(params), found, strict=True):
            entry = entry if isinstance(entry, tuple) else (np.diag(np.ravel(entry)),)
            block = np.asarray(entry[0], np.float64)
            c[place, place] = np.kron(block, entry[1]) if len(entry) == 2 else block
    want = np.linalg.inv(number * c + tau * np.diag(1 / flat**2))
    if form == "last_layer":
        outside = np.setdiff1d(np.arange(len(flat)), inside)
        assert not got[outside].any()
        want[outside] = 0
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-4 * want.max())


def test_what_has_no_curvature():
    build, apply, params, _ = conv_forms()
    with pytest.raises(
        UserError, match="unknown curvature 'kfac': choose from full, last_layer, kronecker, diag"
    ):
        build("kfac")
    focal = balance.focal(categorical.build(), 2.0)
    with pytest.raises(UserError, match="whose Fisher information is known; this one has none"):
        curvature.build("diagonal", apply, ConvNet(), focal, ())
    large = {"kernel": jnp.zeros((101, 100))}
    with pytest.raises(UserError, match="a whole curvature matrix of 10,100 weights is too large"):
        build("full").zeros(large)

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dense(2)
            return layer(nn.tanh(layer(x)))

    class Grouped(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(4, (3,), feature_group_count=2)(x).sum(1)

    for module, shape, message in (
        (Twice(), (5, 2), "layer Dense_0 is called twice: it has no Kronecker factors"),
        (Grouped(), (5, 6, 2), "Conv_0: a convolution in groups or with dilated inputs has no rows"),
    ):
        x = jnp.ones(shape)
        params = module.init(jax.random.key(0), x)["params"]
        form = curvature.build(
            "kronecker", ops.apply_fn(module), module, categorical.build(), ops.layers(module, shape[1:])
        )
        with pytest.raises(UserError, match=message):
            form.measure(params, Batch(x, jnp.zeros(len(x), int)))


# Laplace


def around_the_mode(batch_size=40, num_steps=401, width=None, **settings):
    prior = isotropic.build(width or PROBLEM.std)
    likelihood = gaussian.build(PROBLEM.sigma)
    algorithm = laplace.build(
        objectives.log_joint(PROBLEM.apply, prior, likelihood, 40),
        PROBLEM.apply,
        PROBLEM.module,
        ((),),
        likelihood,
        prior,
        40,
        num_steps,
        batch_size,
        optax.adam(optax.cosine_decay_schedule(0.1, num_steps - 40 // batch_size)),
        **settings,
    )
    state, _ = loop.fit(
        jax.random.key(0),
        algorithm,
        PROBLEM.params(np.zeros(3)),
        PROBLEM.batch,
        num_steps=num_steps,
        batch_size=batch_size,
    )
    return algorithm, state


def evidence(std):
    """log p(y) of the linear problem."""
    x, y = (np.asarray(a, np.float64) for a in PROBLEM.batch)
    cov = std**2 * x @ x.T + PROBLEM.sigma**2 * np.eye(40)
    return -0.5 * (y @ np.linalg.solve(cov, y) + np.linalg.slogdet(2 * math.pi * cov)[1])


@pytest.mark.parametrize("form", curvature.FORMS)
def test_laplace_on_the_linear_problem(form):
    """The posterior itself, and the evidence; the diagonal has the precisions."""
    algorithm, state = around_the_mode(form=form)
    np.testing.assert_allclose(np.ravel(state.params["kernel"]), PROBLEM.mean, rtol=1e-3)
    cov = PROBLEM.cov
    if form == "diagonal":
        cov = np.diag(1 / np.diag(np.linalg.inv(cov)))
    else:
        np.testing.assert_allclose(state.log_evidence, evidence(PROBLEM.std), atol=1e-2)
    draws = jax.jit(jax.vmap(algorithm.sample, (0, None)))(jax.random.split(jax.random.key(1), 40000), state)
    draws = np.asarray(draws["kernel"], np.float64)[..., 0] - PROBLEM.mean
    rows, columns = np.triu_indices(3)
    values = np.concatenate([draws, draws[:, rows] * draws[:, columns]], -1)
    exact = np.concatenate([np.zeros(3), cov[rows, columns]])
    assert (np.abs(values.mean(0) - exact) < SIGMAS * values.std(0) / 200).all()


@pytest.mark.parametrize("form", curvature.FORMS)
def test_the_density_of_laplace(form):
    """That of the Gaussian whose covariance the spectrum gives, each leaf of its own width."""
    build, _, params, batch = conv_forms()
    own = build(form)
    widths = dict(zip(params, (0.5, 1.5, 0.7, 2.0), strict=True))
    widths = {n: jax.tree.map(lambda a, n=n: jnp.full_like(a, widths[n]), params[n]) for n in params}
    module = ConvNet()
    algorithm = laplace_with(
        apply=ops.apply_fn(module),
        module=module,
        layers=ops.layers(module, batch.x.shape[1:]),
        prior=isotropic.build()._replace(scale=lambda params: widths),
        num_data=30,
        form=form,
    )
    if form == "last_layer":  # the other weights do not vary
        assert algorithm.log_prob is None
        return
    found = jax.jit(own.measure)(params, batch)
    state = jax.jit(algorithm.init)(jax.random.key(0), params)
    density = jax.jit(jax.vmap(algorithm.log_prob, (None, 0)))
    assert np.isnan(density(state, trees.stack([params] * 5))).all()  # not measured yet
    state = state._replace(
        spectrum=own.spectrum(found, widths), tau=jnp.asarray(1.3), log_evidence=jnp.asarray(0.0)
    )
    cov = dense(own, found, params, 30, 1.3, widths)
    keys = jax.random.split(jax.random.key(1), 5)
    draws = jax.jit(jax.vmap(algorithm.sample, (0, None)))(keys, state)
    flat = np.asarray(jax.vmap(lambda w: ravel_pytree(w)[0])(draws), np.float64)
    centre = np.asarray(ravel_pytree(params)[0], np.float64)
    np.testing.assert_allclose(
        density(state, draws), multivariate_normal(centre, cov).logpdf(flat), rtol=1e-3
    )


@pytest.mark.parametrize("form", ["full", "kronecker"])
def test_the_density_of_laplace_leaves_the_evidence(form):
    """p(w, D) / q(w) is p(D) at every w where q is the posterior."""
    algorithm, state = around_the_mode(form=form)
    draws = jax.vmap(algorithm.sample, (0, None))(jax.random.split(jax.random.key(1), 100), state)
    joint = jax.vmap(lambda w: PROBLEM.log_joint()(w, PROBLEM.batch))(draws)
    density = jax.vmap(algorithm.log_prob, (None, 0))(state, draws)
    np.testing.assert_allclose(joint - density, evidence(PROBLEM.std), atol=0.02)


def test_minibatches_of_an_epoch_give_the_whole_curvature():
    _, whole = around_the_mode(form="full")
    _, parts = around_the_mode(batch_size=10, num_steps=404, form="full")
    np.testing.assert_allclose(parts.curvature, whole.curvature, rtol=1e-4)
    want = np.asarray(PROBLEM.batch.x).T @ np.asarray(PROBLEM.batch.x) / PROBLEM.sigma**2 / 40
    np.testing.assert_allclose(whole.curvature, want, rtol=1e-4)


@pytest.mark.parametrize("form", ["full", "diagonal"])
def test_the_prior_precision_of_the_largest_evidence(form):
    """The evidence with w* and C held is largest at tau, and reported there."""
    algorithm, state = around_the_mode(width=0.3, form=form, prior_precision="marginal_likelihood")
    lam = 40 * np.concatenate([np.ravel(a) for a in jax.tree.leaves(state.spectrum.values)]).astype(
        np.float64
    )
    z = np.ravel(state.params["kernel"]).astype(np.float64) / 0.3
    log_joint = float(state.log_joint)

    def at(tau):
        prior = -0.5 * (tau - 1) * z @ z + 1.5 * math.log(tau)
        return (
            log_joint
            + prior
            + 1.5 * math.log(2 * math.pi)
            - 0.5 * np.log(lam + tau).sum()
            + 3 * math.log(0.3)
        )

    tau = float(state.tau)
    assert tau < 0.5  # a prior far too narrow
    np.testing.assert_allclose(state.log_evidence, at(tau), rtol=1e-5)
    assert at(tau) > max(at(0.97 * tau), at(1.03 * tau))
    if form == "full":  # as the prior that the factor makes of it, but for the mode, which stays
        assert at(tau) - at(1.0) > 0
        assert abs(at(tau) - evidence(0.3 / math.sqrt(tau))) < 1
    if form == "diagonal":
        keys, tau = jax.random.split(jax.random.key(0), 20000), 30.0  # large enough to be seen
        draws = jax.vmap(algorithm.sample, (0, None))(keys, state._replace(tau=jnp.asarray(tau)))["kernel"]
        error = SIGMAS / math.sqrt(2 * 20000)
        np.testing.assert_allclose(draws[..., 0].std(0), 0.3 / np.sqrt(lam + tau), rtol=error)


def test_laplace_before_its_last_epoch_is_map():
    algorithm, state = around_the_mode()
    unmeasured = state._replace(log_evidence=jnp.asarray(-jnp.inf))
    draw = algorithm.sample(jax.random.key(0), unmeasured)
    np.testing.assert_array_equal(draw["kernel"], state.params["kernel"])
    assert algorithm.linearise_at(state) is state.params
    assert laplace_with(predictive="sampled").linearise_at is None


def laplace_with(**changes):
    given = dict(
        log_joint=None,
        apply=None,
        module=None,
        layers=(),
        likelihood=categorical.build(),
        prior=isotropic.build(),
        num_data=40,
        num_steps=10,
        batch_size=10,
        optimizer=optax.adam(0.1),
    )
    return laplace.build(**given | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(predictive="glm"), "unknown predictive 'glm' of laplace: choose from linearised, sampled"),
        (
            dict(prior_precision="cv"),
            "unknown prior_precision 'cv' of laplace: choose from model, marginal_like",
        ),
        (dict(prior=student_t.build()), "laplace needs a Gaussian prior"),
        (dict(num_steps=4), "laplace measures the curvature in 4 steps, an epoch: 4 are too few in all"),
        (dict(form="x"), "unknown curvature 'x'"),
    ],
)
def test_a_mistake_with_laplace(changes, message):
    with pytest.raises(UserError, match=message):
        laplace_with(**changes)
