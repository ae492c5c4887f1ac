"""scripts/compare.py as its users meet it: whole runs in their own process, wrong input, interruptions."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro
from problems import load_script

from bnn_jax import distances, files, runs
from bnn_jax.types import UserError

ROOT = Path(__file__).parent.parent
TINY = [  # two chains of 20 draws; shows everything and proves nothing
    *("--map-steps", "60", "--vi-steps", "60", "--vi-draws", "8", "--num-warmup", "10", "--num-draws", "20"),
    *("--block-size", "5", "--trajectory-length", "0.1", "--num-bootstrap", "20"),
]


def command(*arguments):
    return [sys.executable, str(ROOT / "scripts" / "compare.py"), *map(str, arguments)]


def environment():
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def run(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=environment(), timeout=900)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny run and what it printed."""
    out = tmp_path_factory.mktemp("compare") / "run"
    done = run("--out", out, *TINY)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_a_run_writes_what_it_promises(finished):
    out, printed = finished
    results = json.loads((out / "results.json").read_text())
    assert set(results["methods"]) == {"map", "vi", "hmc"}
    for record in results["methods"].values():
        for measure in ("accuracy", "nll", "brier", "ece", *distances.CLASSIFICATION.distances, "w2"):
            low, high = record[f"{measure}_interval"]
            assert low <= record[measure] <= high
        assert record["seconds"] > 0
    for measure in (*distances.CLASSIFICATION.distances, "w2"):
        assert results["methods"]["hmc"][measure] == results["floor"][measure]
        low, high = results["floor"][f"{measure}_interval"]
        assert low <= results["floor"][measure] <= high
    diagnosed = results["diagnostics"]["hmc"]
    for name in (
        *("rhat_function_median", "rhat_function_q95", "rhat_weight_median", "ess_function_min"),
        *("acceptance", "step_size", "num_steps", "divergences", "moved"),
    ):
        assert diagnosed[name] is not None, name
    assert all(np.isfinite(value) and value > 0 for value in diagnosed["ebfmi"])
    layers = {
        "Conv_0/bias",
        "Conv_0/kernel",
        "Conv_1/bias",
        "Conv_1/kernel",
        "Dense_0/bias",
        "Dense_0/kernel",
    }
    assert set(results["weights"]["methods"]) == {"map", "vi"}
    for found in (results["weights"]["methods"]["vi"], results["weights"]["floor"]):
        assert set(found) == layers
        assert all(row["wasserstein"] > 0 and row["std_ratio"] > 0 for row in found.values())
    assert set(results["weights"]["mixing"]["aligned"]) == layers
    assert results["environment"]["num_devices"] == 2  # one a chain
    assert results["config"]["seed"] == 0
    assert results["data"]["num_train"] == 1297
    for name in ("report.html", "distances.png", "reliability.png", "weight_std.png", "rhat.png", "hmc.nc"):
        assert (out / name).stat().st_size > 0
    units = " ".join(printed.split()).split("in units of the floor: ")[1].split(". ")[0]
    assert [word for word in units.split() if word.isalpha()] == ["map", "vi"]
    for word in ("ELBO", "acceptance", "step size", "left", "accuracy", "report"):
        assert word in printed


def test_regressions_and_methods_with_settings(tmp_path):
    """A table of numbers, three methods, of which one is told how; the report has what a regression has."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    rows = np.column_stack([x, x @ [1.0, -2.0, 0.5] + 0.3 * rng.normal(size=60)])
    np.savetxt(tmp_path / "rows.csv", rows, delimiter=",", header="a,b,c,y", comments="")
    out = tmp_path / "run"
    methods = ["map", "laplace(form='full')", "sgld(step_size=0.01)", "hmc"]
    given = [
        "--dataset",
        "table",
        "--path",
        tmp_path / "rows.csv",
        "--target",
        "y",
        "--net",
        "mlp(hidden=(5,))",
    ]
    given += [
        "--map-steps",
        "200",
        "--vi-steps",
        "200",
        "--vi-draws",
        "8",
        "--num-warmup",
        "60",
        "--num-draws",
        "20",
    ]
    given += [
        "--block-size",
        "20",
        "--trajectory-length",
        "0.2",
        "--num-bootstrap",
        "20",
        "--batch-size",
        "10",
    ]
    done = run(*given, "--methods", *methods, "--out", out)
    assert done.returncode == 0, done.stderr
    results = json.loads((out / "results.json").read_text())
    assert list(results["methods"]) == methods
    for record in results["methods"].values():
        for measure in ("rmse", "nll", "coverage_50", "coverage_90", "total_variation", "symmetric_kl", "w2"):
            low, high = record[f"{measure}_interval"]
            assert low <= record[measure] <= high
        assert "agreement" not in record
    assert (out / "sgld-step_size-0.01" / "progress.json").exists()
    assert {path.name for path in out.glob("*.png")} == {
        *("distances.png", "rhat.png", "trace_function.png", "trace_weights.png", "weight_std.png"),
    }
    assert "W2 of" in done.stdout
    assert run("--from", out).returncode == 0


def table(printed):
    """What is printed below the progress: table and notes."""
    return printed[printed.index("\nmethod") : printed.index("report:")]


def test_the_same_command_repeats_the_table_and_from_redoes_the_report(finished):
    out, printed = finished
    before = json.loads((out / "results.json").read_text())
    (out / "report.html").unlink()
    for arguments in (("--out", out, *TINY), ("--from", out)):
        again = run(*arguments)
        assert again.returncode == 0, again.stderr
        assert "ELBO" not in again.stdout  # nothing was trained
        assert table(again.stdout) == table(printed)
        after = json.loads((out / "results.json").read_text())
        assert {**after, "environment": None} == {**before, "environment": None}
    assert (out / "report.html").exists()


INTERRUPTED = """
import os, runpy, signal, sys
from bnn_jax import runs

write = runs.write_json

def write_and_interrupt(path, record):
    write(path, record)
    if path.name == "progress.json":
        os.kill(os.getpid(), signal.SIGINT)

runs.write_json = write_and_interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_an_interrupted_run_goes_on_with_the_same_draws(finished, tmp_path):
    """By the signal of Ctrl-C, right after the first block was counted."""
    out, _ = finished
    part = tmp_path / "part"
    python, *arguments = command("--out", part, *TINY)
    stopped = subprocess.run([python, "-c", INTERRUPTED, *arguments], env=environment(), timeout=900)
    assert stopped.returncode == 130
    assert json.loads((part / "hmc" / "progress.json").read_text())["blocks"] == 1
    assert not (part / "results.json").exists()
    resumed = run("--out", part, *TINY)
    assert resumed.returncode == 0, resumed.stderr
    for index in range(4):
        whole, pieces = (np.load(folder / "hmc" / f"block_{index:05d}.npz") for folder in (out, part))
        for name in whole.files:
            np.testing.assert_array_equal(whole[name], pieces[name])


def medmnist(path, **changed):
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 255, (40, 12, 12), np.uint8),
        "train_labels": (np.arange(40) % 2)[:, None],
        "test_images": rng.integers(0, 255, (10, 12, 12), np.uint8),
        "test_labels": (np.arange(10) % 2)[:, None],
    }
    np.savez(path, **{**arrays, **changed})
    return path


# What a user may do wrong -> what the one line must say.
NAN = np.full((40, 12, 12), np.nan, np.float32)
WRONG = {
    "net": (["--net", "resnet9"], "unknown network 'resnet9': choose from blocks, conv1d, convnet"),
    "dataset": (["--dataset", "cifar11"], "the data set cifar11 is not prepared"),
    "method": (
        ["--methods", "map", "gibbs"],
        "unknown method 'gibbs': choose from dropout, hmc, hmcecs, ivon, laplace, map, mclmc, "
        "mclmc_adjusted, nuts, psgld, rank_one, sghmc, sgld, svgd, swag, vi",
    ),
    "prior": (["--prior", "flat"], "unknown prior 'flat': choose from fan_in, isotropic"),
    "posterior": (
        ["--posterior", "flow"],
        "unknown posterior 'flow': choose from kronecker, low_rank, mean_field",
    ),
    "estimator": (["--estimator", "magic"], "unknown estimator 'magic': choose from sampling"),
    "twice": (["--methods", "map", "map"], "each method once"),
    "chains": (["--num-chains", "0"], "num_chains, num_draws, thin and block_size must be at least 1"),
    "draws": (["--num-draws", "0"], "must be at least 1"),
    "few draws": (["--num-draws", "2", "--block-size", "1"], "--num-draws must be at least 4"),
    "seed": (["--seed", "-1"], "--seed must lie between 0 and 4294967295"),
    "beta": (["--beta-warmup", "-1"], "--beta-warmup must not be negative"),
    "warmup": (["--num-warmup", "7"], "must be a multiple of block_size"),
    "batch": (["--batch-size", "2000"], "batch_size must lie between 1 and the 1297 training examples"),
    "trajectory": (["--trajectory-length", "-1"], "trajectory_length must be a positive number"),
    "kl": (["--prior", "laplace"], "closed-form KL needs a Gaussian prior"),
    "large net": (
        ["--methods", "hmcecs", "--net", "mlp(hidden=(50,))"],
        "3760 weights are more than the 2000 it takes",
    ),
    "large matrix": (
        ["--methods", "laplace(form='full')", "--net", "mlp(hidden=(200,))"],
        "a whole curvature matrix of 15,010 weights is too large",
    ),
    "small images": (["--net", "lenet"], "lenet needs images"),
    "path": (["--path", "x.npz"], "takes no --path"),
    "no path": (["--dataset", "medmnist"], "needs --path"),
    "no file": (["--dataset", "medmnist", "--path", "nowhere.npz"], "no file nowhere.npz"),
    "text file": (["--dataset", "medmnist", "--path", "text.npz"], "damaged or not an .npz file"),
    "other npz": (["--dataset", "medmnist", "--path", "other.npz"], "not in MedMNIST format"),
    "nan": (["--dataset", "medmnist", "--path", "nan.npz"], "NaN or infinite values"),
    "labels": (["--dataset", "medmnist", "--path", "labels.npz"], "labels must lie in 0..1"),
    "one class": (["--dataset", "medmnist", "--path", "one.npz"], "one class only"),
    "from nowhere": (["--from", "nowhere"], "no run folder at nowhere"),
    "from and more": (["--from", "nowhere", "--seed", "3"], "--from takes the settings of the finished run"),
    "from another version": (["--from", "old"], "is a run of another version"),
    "foreign folder": (["--out", "foreign"], "not a run of compare; nothing was changed"),
    "file in the way": (["--out", "text.npz"], "is a file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_told_in_one_line(name, tmp_path, monkeypatch):
    arguments, message = WRONG[name]
    compare = load_script("compare").compare
    monkeypatch.chdir(tmp_path)
    medmnist("nan.npz", train_images=NAN)
    medmnist("labels.npz", test_labels=np.full((10, 1), 7))
    medmnist("one.npz", train_labels=np.zeros((40, 1), int), test_labels=np.zeros((10, 1), int))
    np.savez("other.npz", x=np.zeros(3))
    Path("text.npz").write_text("no archive")
    Path("foreign").mkdir()
    Path("foreign/thesis.txt").write_text("mine")
    Path("old").mkdir()
    Path("old/run.json").write_text('{"project": "bnn_jax", "script": "compare", "config": {"sed": 1}}')
    before = sorted(Path().rglob("*"))
    config = tyro.cli(compare.Config, args=arguments)
    with pytest.raises(UserError) as caught:
        compare.main(config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(Path().rglob("*")) == before  # nothing begun, nothing overwritten
    assert Path("foreign/thesis.txt").read_text() == "mine"


def test_exit_codes_and_other_settings_are_refused(finished, tmp_path):
    out, _ = finished
    before = (out / "run.json").read_bytes()
    refused = run("--out", out, *TINY, "--seed", "1")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "seed 0 there, 1 here" in refused.stderr
    assert (out / "run.json").read_bytes() == before
    assert run("--no-such-option").returncode == 2
    assert run("--help").returncode == 0


def test_a_folder_in_use_is_refused(finished):
    out, _ = finished
    with files.held(out):
        refused = run("--out", out, *TINY)
    assert refused.returncode == 2
    assert refused.stderr == f"error: another process is at work in {out}: wait for it, or choose another\n"


def test_chains_without_a_reference_are_no_failure(tmp_path):
    done = run("--out", tmp_path / "out", *TINY, "--methods", "map", "sgld")
    assert done.returncode == 0, done.stderr
    assert runs.read_json(tmp_path / "out" / "results.json")["reference"] is None


def test_other_data_are_refused(finished, tmp_path):
    """When a run goes on, and when it is reported again: its weights are of the data it began with."""
    out, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    (copy / "data.json").write_text('{"fingerprint": "of others"}')
    before = (copy / "results.json").read_bytes()
    for options in (("--from", copy), ("--out", copy, *TINY)):
        refused = run(*options)
        assert refused.returncode == 2
        assert "the data have changed since" in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert (copy / "results.json").read_bytes() == before


def test_damaged_draws_are_named(finished, tmp_path):
    out, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    block = copy / "hmc" / "block_00001.npz"
    block.write_bytes(block.read_bytes()[:-1000])
    damaged = run("--from", copy)
    assert damaged.returncode == 2
    assert "block_00001.npz is damaged" in damaged.stderr
    assert damaged.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("frozen", "code", "methods"),
    [([1], 0, ["map", "vi", "hmc"]), ([0, 1], 1, ["map", "vi", "hmc"]), ([0, 1], 1, ["hmc"])],
)
def test_a_frozen_chain_is_named_and_left_out(finished, tmp_path, frozen, code, methods):
    out, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    for block in (copy / "hmc").glob("block_*.npz"):
        arrays = dict(np.load(block))
        for name, value in arrays.items():
            if not name.startswith("trace/"):
                value[frozen] = 0.5
        arrays["trace/step_size"][frozen] = 3e38  # what NumPyro's adaptation ends at
        arrays["trace/num_steps"][frozen] = 0
        arrays["trace/accept_prob"][frozen] = 1
        np.savez(block, **arrays)
    mark = json.loads((copy / "run.json").read_text())
    mark["config"]["methods"] = methods
    (copy / "run.json").write_text(json.dumps(mark))
    done = run("--from", copy)
    assert done.returncode == code, done.stderr
    results = json.loads((copy / "results.json").read_text())
    for chain in (0, 1):
        assert results["diagnostics"]["hmc"]["status"][chain] == ("frozen" if chain in frozen else "ok")
        named = f"hmc: chain {chain + 1} frozen, left out." in done.stdout
        assert named == (chain in frozen)
    assert results["reference"] == (None if code else "hmc")
    assert ("accuracy" in results["methods"]["hmc"]) == (code == 0)
    assert results["floor"] == {}  # it takes two sound chains
