"""ArviZ, old and new, reads the file back."""

import warnings

import jax
import numpy as np
import pytest

from bnn_jax import inference_data

C, D = 3, 5


def arviz():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 0.23 announces its refactor
        return pytest.importorskip("arviz", reason="the reader that the file is for")


@pytest.fixture
def written(tmp_path):
    rng = np.random.default_rng(0)
    like = {"Conv_0": {"kernel": (3, 2), "bias": (2,)}, "log_sigma": ()}
    is_shape = lambda a: isinstance(a, tuple)
    draws = jax.tree.map(lambda s: rng.standard_normal((C, D, *s)).astype(np.float32), like, is_leaf=is_shape)
    trace = {
        "accept_prob": rng.random((C, D)).astype(np.float32),
        "num_steps": np.full((C, D), 7.0, np.float32),
        "diverging": (np.arange(C * D).reshape(C, D) % 4 == 0).astype(np.float32),
        "log_joint": rng.standard_normal((C, D)),
        "energy": rng.standard_normal((C, D)),
    }
    path = tmp_path / "draws.nc"
    inference_data.write(path, draws, trace)
    return path, draws, trace


def test_arviz_reads_it(written):
    path, draws, trace = written
    data = arviz().from_netcdf(path)
    posterior, stats = data["posterior"], data["sample_stats"]
    assert set(posterior.data_vars) == {"Conv_0.kernel", "Conv_0.bias", "log_sigma"}
    for name, leaf in (
        ("Conv_0.kernel", draws["Conv_0"]["kernel"]),
        ("Conv_0.bias", draws["Conv_0"]["bias"]),
        ("log_sigma", draws["log_sigma"]),
    ):
        assert posterior[name].dims == ("chain", "draw", *(f"{name}_dim_{i}" for i in range(leaf.ndim - 2)))
        assert posterior[name].dtype == leaf.dtype
        np.testing.assert_array_equal(posterior[name].values, leaf)
    np.testing.assert_array_equal(posterior["chain"].values, np.arange(C))
    np.testing.assert_array_equal(stats["draw"].values, np.arange(D))
    names = {"acceptance_rate": "accept_prob", "n_steps": "num_steps", "lp": "log_joint", "energy": "energy"}
    assert set(stats.data_vars) == {*names, "diverging"}
    for name, ours in names.items():
        assert stats[name].dims == ("chain", "draw")
        np.testing.assert_array_equal(stats[name].values, trace[ours])
    assert stats["diverging"].dtype == bool
    np.testing.assert_array_equal(stats["diverging"].values, trace["diverging"] > 0)
    assert posterior.attrs["inference_library"] == "numpyro"


def test_arviz_computes_with_it(written):
    """Its R-hat of every weight, from the file, equals that from the arrays."""
    path, draws, _ = written
    rhat = arviz().rhat(arviz().from_netcdf(path))
    rhat = rhat.get("posterior", rhat)  # 1.x keeps the group
    assert rhat["Conv_0.kernel"].shape == (3, 2)
    want = arviz().rhat(np.ascontiguousarray(draws["Conv_0"]["kernel"][..., 1, 0]))
    np.testing.assert_allclose(rhat["Conv_0.kernel"].values[1, 0], want, rtol=1e-6)


def test_writing_twice_replaces(written):
    path, draws, trace = written
    inference_data.write(path, jax.tree.map(np.zeros_like, draws), trace)
    assert not arviz().from_netcdf(path)["posterior"]["log_sigma"].values.any()
