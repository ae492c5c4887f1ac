"""Every prior is a normalised density that its samples follow, at the width that it states."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from bnn_jax import parts
from bnn_jax.types import UserError

pytestmark = pytest.mark.usefixtures("quick_compile")

NAMES = parts.names("prior")
LIKE = {  # dense and convolution kernels, vectors, a scalar
    "Conv_0": {"kernel": jax.ShapeDtypeStruct((3, 2, 4, 5), jnp.float32)},
    "Dense_0": {
        "kernel": jax.ShapeDtypeStruct((50, 40), jnp.float32),
        "bias": jax.ShapeDtypeStruct((40,), jnp.float32),
    },
    "log_sigma": jax.ShapeDtypeStruct((), jnp.float32),
}
SCIPY = {  # settings -> the same density, on a vector
    "isotropic": (dict(std=0.7), stats.norm(scale=0.7)),
    "fan_in": (dict(bias_std=0.6), stats.norm(scale=0.6)),
    "laplace": (dict(std=0.8), stats.laplace(scale=0.8 / np.sqrt(2))),
    "student_t": (dict(scale=0.5, df=4.0), stats.t(4.0, scale=0.5)),
}
BAD = [0.0, -1.0, float("nan"), float("inf")]


def one(prior, w: float) -> float:
    """The log density of a single weight, as a vector of length 1."""
    return float(prior.log_prob({"bias": jnp.array([w], jnp.float32)}))


def density(prior):
    return jax.jit(lambda w: jnp.exp(prior.log_prob({"bias": w[None]})))


@pytest.mark.parametrize("name", NAMES)
def test_normalised(name):
    f = density(parts.find("prior", name)())
    g = lambda w: float(f(np.float32(w)))
    points = [1e-3, 1e-2, 0.1, 1.0]  # a narrow component must not be missed
    edges = [-np.inf, -30.0, *(-p for p in reversed(points)), 0.0, *points, 30.0, np.inf]
    total = sum(quad(g, a, b, limit=100, epsabs=1e-6)[0] for a, b in pairwise(edges))
    assert total == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", SCIPY)
def test_equals_scipy(name):
    settings, want = SCIPY[name]
    prior = parts.find("prior", name)(**settings)
    w = np.array([-3.0, -0.4, 0.0, 1e-3, 2.5], np.float32)
    assert float(prior.log_prob({"a": w[:2], "b": {"c": w[2:]}})) == pytest.approx(
        want.logpdf(w).sum(), rel=1e-5
    )


def test_scale_mixture_equals_its_components():
    prior = parts.find("prior", "scale_mixture")(std_wide=1.5, std_narrow=0.1, wide=0.3)
    for w in (-4.0, -0.1, 0.0, 0.5):
        want = 0.3 * stats.norm.pdf(w, scale=1.5) + 0.7 * stats.norm.pdf(w, scale=0.1)
        assert one(prior, w) == pytest.approx(np.log(want), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_samples_follow_the_density(name):
    """Kolmogorov-Smirnov of 20,000 weights against the numerically integrated density, at p = 6e-7 (5 sigma);
    and their standard deviation is `scale`, but for Student-t's: its `scale` is documented as the bulk's."""
    prior = parts.find("prior", name)()
    like = {"bias": jnp.zeros(20_000)}
    draws = np.sort(np.asarray(prior.sample(jax.random.key(3), like)["bias"], np.float64))
    size = np.concatenate([[0], np.geomspace(1e-5, 1e4, 20_001)])
    grid = np.concatenate([-size[:0:-1], size])
    pdf = np.asarray(jax.jit(jax.vmap(lambda w: jnp.exp(prior.log_prob({"b": w}))))(grid.astype(np.float32)))
    cdf = np.concatenate([[0], np.cumsum(np.diff(grid) * (pdf[1:] + pdf[:-1]) / 2)])
    assert stats.kstest(draws, lambda w: np.interp(w, grid, cdf)).pvalue > 6e-7
    scale = np.asarray(prior.scale(like)["bias"])
    assert (scale == scale[0]).all()
    if name == "student_t":  # the 75 % quantile of t_3
        assert np.quantile(draws, 0.75) == pytest.approx(scale[0] * stats.t.ppf(0.75, 3), rel=0.06)
    else:
        kurtosis = np.mean(draws**4) / np.mean(draws**2) ** 2
        assert draws.std() / scale[0] == pytest.approx(1, abs=5 * np.sqrt((kurtosis - 1) / 4 / draws.size))


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_like_the_tree_and_leaves_differ(name):
    """Under jit and vmap, with checked keys."""
    prior = parts.find("prior", name)()
    like = {**LIKE["Dense_0"], "twin": LIKE["Dense_0"]["kernel"]}

    def sample_twice(key):
        many = jax.vmap(lambda k: prior.sample(k, like))(jax.random.split(key, 2))
        return many, jax.vmap(prior.log_prob)(many)

    with jax.debug_key_reuse(True):
        many, values = jax.jit(sample_twice)(jax.random.key(0))
    twins = np.stack([many["kernel"][0].ravel(), many["twin"][0].ravel()])
    assert abs(stats.spearmanr(*twins).statistic) < 5 / np.sqrt(twins.shape[1])
    assert all((a[0] != a[1]).all() for a in jax.tree.leaves(many))
    np.testing.assert_allclose(values[1], prior.log_prob(jax.tree.map(lambda a: a[1], many)), rtol=1e-5)
    for dtype in (jnp.float32, jnp.bfloat16):
        want = jax.tree.map(lambda a, d=dtype: jax.ShapeDtypeStruct(a.shape, d), LIKE)
        found = jax.eval_shape(lambda k, w=want: prior.sample(k, w), jax.random.key(0))
        assert jax.tree.map(lambda a: (a.shape, a.dtype), found) == jax.tree.map(
            lambda a: (a.shape, a.dtype), want
        )


@pytest.mark.parametrize("name", NAMES)
def test_moments_only_where_gaussian(name):
    """A prior that states moments is the Gaussian with these moments, on every leaf."""
    prior = parts.find("prior", name)()
    assert (prior.moments is not None) == (name in ("isotropic", "fan_in"))
    scale = prior.scale(LIKE)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), scale) == jax.tree.map(
        lambda a: (a.shape, a.dtype), LIKE
    )
    if prior.moments is not None:
        mean, std = prior.moments(scale)
        jax.tree.map(np.testing.assert_array_equal, std, scale)
        w = jax.tree.map(lambda a: jnp.full(a.shape, 0.3), LIKE)
        want = jax.tree.map(lambda *a: stats.norm.logpdf(*map(np.asarray, a)).sum(), w, mean, std)
        assert float(prior.log_prob(w)) == pytest.approx(sum(jax.tree.leaves(want)), rel=1e-5)


def test_fan_in_counts_every_input():
    """Convolution kernel (3, 2, 4, 5): fan-in 24; dense (50, 40): 50; vectors have the bias' width."""
    scale = parts.find("prior", "fan_in")(gain=3.0, bias_std=0.2).scale(LIKE)
    for leaf, want in (
        (scale["Conv_0"]["kernel"], np.sqrt(3 / 24)),
        (scale["Dense_0"]["kernel"], np.sqrt(3 / 50)),
        (scale["Dense_0"]["bias"], 0.2),
        (scale["log_sigma"], 0.2),
    ):
        np.testing.assert_allclose(leaf, want, rtol=1e-6)
    draws = parts.find("prior", "fan_in")(gain=3.0).sample(jax.random.key(0), LIKE)["Dense_0"]["kernel"]
    assert float(draws.std()) == pytest.approx(np.sqrt(3 / 50), rel=5 / np.sqrt(2 * draws.size))


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("isotropic", "std"),
        ("fan_in", "gain"),
        ("fan_in", "bias_std"),
        ("laplace", "std"),
        ("student_t", "scale"),
        ("student_t", "df"),
        ("scale_mixture", "std_wide"),
        ("scale_mixture", "std_narrow"),
        ("scale_mixture", "wide"),
    ],
)
def test_bad_settings(name, setting):
    for value in BAD + [1.0] * (setting == "wide"):
        with pytest.raises(UserError, match=f"prior's .*{setting}.*not"):
            parts.find("prior", name)(**{setting: value})
