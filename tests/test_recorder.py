"""What training notes: exact standard deviations, in the history of a run, refused where there are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnn_jax import parts, recorder
from bnn_jax.infer.vi import VIState
from bnn_jax.posteriors import mean_field
from bnn_jax.types import Posterior, UserError


def state(*stds):
    """A state whose layers have these standard deviations."""
    inverse = lambda s: s + jnp.log(-jnp.expm1(-s))  # of softplus
    rho = {f"Dense_{i}": {"kernel": inverse(jnp.asarray(s, jnp.float32))} for i, s in enumerate(stds)}
    return VIState(mean_field.MeanField(jax.tree.map(jnp.zeros_like, rho), rho), None, None)


def test_standard_deviations_of_layers_are_exact():
    found = recorder.layer_std("mean_field")(state([[0.1, 0.3]], [[2.0], [4.0]]))
    assert found == pytest.approx({"std_Dense_0_kernel": 0.2, "std_Dense_1_kernel": 3.0}, rel=1e-5)
    assert all(type(value) is float for value in found.values())


def test_of_an_ensemble_the_mean_over_members():
    members = jax.tree.map(lambda *a: jnp.stack(a), state([0.1, 0.1]), state([0.5, 0.5]))
    assert recorder.layer_std("mean_field")(members)["std_Dense_0_kernel"] == pytest.approx(0.3, rel=1e-5)


def test_a_family_without_moments_is_refused(monkeypatch):
    bare = Posterior(init=None, sample=None, log_prob=None)
    monkeypatch.setattr(parts, "find", lambda kind, name: lambda: bare)
    with pytest.raises(UserError, match=r"^the posterior flow has no standard deviation a weight to record$"):
        recorder.layer_std("flow")


def test_the_start_is_the_width_that_the_family_starts_with():
    family = mean_field.build(init_std=0.05)
    start = VIState(family.init({"w": np.zeros(3, np.float32)}), None, None)
    assert recorder.layer_std("mean_field")(start) == pytest.approx({"std_w": 0.05}, rel=1e-5)
