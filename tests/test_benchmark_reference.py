"""benchmarks/reference.py on a run of its own: distances to published predictions, and what is refused."""

import dataclasses

import numpy as np
import pytest
from problems import load_script

from bnn_jax import distances, experiment, trained
from bnn_jax.commands import train
from bnn_jax.settings import Config
from bnn_jax.types import UserError

benchmark = load_script("reference", "benchmarks")

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on a part of the digits, its predictions for all test images, and their labels."""
    config = Config(net="mlp(hidden=(8,))", method="map", limit=100, steps=20, batch_size=50)
    run = tmp_path_factory.mktemp("run") / "map"
    train.main(dataclasses.replace(config, out=run))
    found = experiment.load_data(dataclasses.replace(config, limit=None))
    return run, trained.classify(trained.load(run), found.x_test, 1).mean, found.y_test


def test_a_run_beside_published_predictions(finished):
    run, probs, labels = finished
    own = benchmark.score(run, (probs, labels), None)
    assert own["agreement"] == 1
    assert own["total_variation"] < 1e-6
    assert "w2" not in own
    other = np.roll(probs, 1, axis=1)
    row = benchmark.score(run, (other, labels), None, points=50)
    assert row["total_variation"] == pytest.approx(
        distances.total_variation(probs[:50], other[:50]), rel=1e-4
    )
    lines = benchmark.table({"MAP": row})
    assert lines[0].startswith("| method | draws | accuracy | nll | ece | agreement | total variation |")
    assert lines[2].startswith("| MAP | 1 |")
    assert lines[-1].startswith(f"| **HMC, the published file** | - | {row['published']['accuracy']:.3f} |")
    (hmc,) = (line for line in lines if line.startswith("| HMC, published |"))
    assert hmc == "| HMC, published | - | 0.896 | - | - | 0.940 | 0.074 | - | - | - |"


def test_a_file_of_published_predictions(finished, tmp_path):
    _, probs, labels = finished
    path = tmp_path / "hmc.npz"
    np.savez(path, probs=probs, labels=labels.astype(np.uint8))
    found = benchmark.load(path, None)
    np.testing.assert_array_equal(found[0], probs)
    np.testing.assert_array_equal(found[1], labels)
    np.savez(path, probs=probs)
    with pytest.raises(UserError, match="labels"):
        benchmark.load(path, None)
    with pytest.raises(UserError, match="no file"):
        benchmark.load(tmp_path / "none.npz", None)


def test_mistakes(finished, tmp_path):
    run, probs, labels = finished
    with pytest.raises(UserError, match="its test part is not that of the published predictions"):
        benchmark.score(run, (probs, np.roll(labels, 1)), None)
    np.savez(tmp_path / "hmc.npz", probs=probs, labels=labels)
    options = benchmark.Options(file=tmp_path / "hmc.npz", out=tmp_path / "out", methods=("gibbs",))
    with pytest.raises(UserError, match="no method gibbs: choose from MAP"):
        benchmark.main(options)
    with pytest.raises(UserError, match="mean-field VI starts at the run of MAP: run that first"):
        benchmark.main(dataclasses.replace(options, methods=("mean-field VI",)))


def test_the_recipe_is_the_published_one():
    for label in benchmark.METHODS:
        if label not in benchmark.FROM_MAP:
            config = benchmark.configured(label, None, benchmark.Options())
            assert (config.net, config.limit, config.batch_size) == ("resnet", 40_960, 80)
            assert config.prior == f"isotropic(std={0.2**0.5:.10f})"
            short = benchmark.configured(label, None, benchmark.Options(quick=True))
            assert (short.limit, short.steps) == (200, 4)


def test_the_page_is_written(finished, tmp_path, monkeypatch):
    """The whole way from the command to its page, with a small run in place of ResNet-20's."""
    run, probs, labels = finished
    np.savez(tmp_path / "hmc.npz", probs=probs, labels=labels)
    monkeypatch.setattr(benchmark.train, "main", lambda config: None)
    monkeypatch.setattr(benchmark.runs, "slug", lambda label: run.name)
    options = benchmark.Options(file=tmp_path / "hmc.npz", out=run.parent, quick=True, methods=("MAP",))
    benchmark.main(options)
    page = (run.parent / "reference.md").read_text()
    assert "| MAP | 1 |" in page
    assert "Seconds: wall time of training on " in page
