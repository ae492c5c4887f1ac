"""scripts/train.py as its users meet it: killed and started again, wrong input, help."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro

from bnn_jax import checkpoint, experiment, files, trained
from bnn_jax.commands import train as train_command
from bnn_jax.types import UserError

ROOT = Path(__file__).parent.parent
SHORT = ["--net", "mlp", "--method", "map", "--steps", "4", "--eval-every", "2"]


def medmnist(path, sizes=(40, 16, 8), val=True, **changed):
    """Two classes, 2 to 1; the smaller is brighter in the middle."""
    arrays = {}
    for seed, (part, size) in enumerate(zip(("train", "val", "test"), sizes, strict=True)):
        rng = np.random.default_rng(seed)
        labels = np.arange(size) % 3 // 2
        images = rng.integers(0, 150, (size, 8, 8), np.uint8)
        images[labels == 1, 2:6, 2:6] += 60
        arrays |= {f"{part}_images": images, f"{part}_labels": labels[:, None]}
    if not val:
        del arrays["val_images"], arrays["val_labels"]
    np.savez(path, **{**arrays, **changed})
    return path


def table(path, rows=40):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 3))
    np.savetxt(path, np.column_stack([x, x.sum(1)]), delimiter=",", header="a,b,c,price", comments="")
    return path


def command(*arguments):
    return [sys.executable, str(ROOT / "scripts" / "train.py"), *map(str, arguments)]


def environment():
    """That of a user; compiled without most optimisations, for speed."""
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)}
    return {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | quick


def run(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=environment(), timeout=600)


# --- killed and started again ----------------------------------------------------------------------------


def begun(run):
    """Nothing is trained yet: building, compiling."""
    return (run / "data.json").exists()


def between(run):
    """At least two checkpoints are written."""
    return len(checkpoint.steps(run / "checkpoints")) >= 2


def writing(run):
    """A checkpoint is half written."""
    names = [path.name for path in (run / "checkpoints").glob("step-*")]
    return len(names) > 2 and any(not name[5:].isdigit() for name in names)


def kill_when(condition, arguments, out):
    """Start the command, and SIGKILL it as soon as the condition holds; whether it lived until then."""
    process = subprocess.Popen(
        command(*arguments), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if condition(out):
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return True
        time.sleep(0.001)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    return False


def final(out):
    """The bytes of the history, the numbers of the state and the outcome without its time."""
    files = [(out / name).read_bytes() for name in ("history.json", "history.csv", "split.csv")]
    outcome = json.loads((out / "outcome.json").read_text())
    return files, trained.load(out).source[1], (outcome["step"], outcome["stopped"])


def test_killed_three_times_it_ends_as_if_it_had_not_been(tmp_path):
    """An ensemble with augmentation, over-sampling, KL warm-up, early stopping and plateau."""
    settings = ["--dataset", "medmnist", "--path", medmnist(tmp_path / "a.npz"), "--net", "mlp"]
    settings += ["--method", "vi", "--estimator", "sampling", "--members", "2", "--beta-warmup", "20"]
    settings += ["--rotation", "15", "--zoom", "0.9", "1.1", "--crop", "7", "--balance", "over_sample"]
    settings += ["--patience", "6", "--plateau-patience", "1", "--warmup", "3", "--learning-rate", "0.01"]
    settings += ["--epochs", "8", "--batch-size", "16", "--eval-every", "2", "--eval-draws", "2"]
    whole, out = tmp_path / "whole", tmp_path / "cut"
    done = run(*settings, "--out", whole)
    assert done.returncode == 0, done.stderr
    for condition in (begun, between, writing):
        assert kill_when(condition, [*settings, "--out", out], out)
        assert not (out / "outcome.json").exists()
    done = run(*settings, "--out", out, "--keep", "3")
    assert done.returncode == 0, done.stderr
    files, state, outcome = final(out)
    want_files, want_state, want_outcome = final(whole)
    assert files == want_files
    assert outcome == want_outcome
    jax.tree.map(np.testing.assert_array_equal, state, want_state)
    rows = json.loads(files[0])
    assert len(rows) >= 7
    assert {"elbo", "nll", "kl", "beta", "val_nll", "val_accuracy"} <= set(rows[0])
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}
    assert "over_sample: 40 examples, 54 visited an epoch; the ELBO keeps N = 40" in " ".join(
        done.stdout.split()
    )


# --- what a user may do wrong ----------------------------------------------------------------------------

IMAGES = ["--dataset", "medmnist", "--path", "a.npz", "--net", "digits", "--batch-size", "20"]
TABLE = ["--dataset", "table", "--path", "a.csv", "--net", "mlp", "--batch-size", "20"]
HMC = [*IMAGES, "--method", "hmc"]
WRONG = {
    "net": (["--net", "resnet9"], "unknown network 'resnet9': choose from"),
    "method": (
        [*IMAGES, "--method", "gibbs"],
        "unknown method 'gibbs': choose from dropout, hmc, hmcecs, ivon, laplace, map, mclmc, "
        "mclmc_adjusted, nuts, psgld, rank_one, sghmc, sgld, svgd, swag, vi",
    ),
    "optimizer": ([*IMAGES, "--optimizer", "adan2"], "unknown optimizer 'adan2': choose from"),
    "schedule": ([*IMAGES, "--schedule", "linear"], "unknown schedule 'linear': choose from cosine"),
    "prior": ([*IMAGES, "--prior", "flat"], "unknown prior 'flat'"),
    "posterior": ([*IMAGES, "--posterior", "flow"], "unknown posterior 'flow'"),
    "estimator": ([*IMAGES, "--estimator", "magic"], "unknown estimator 'magic'"),
    "kl": ([*IMAGES, "--kl", "exact"], "unknown kl 'exact'"),
    "compute": ([*IMAGES, "--compute", "float16"], "unknown compute dtype 'float16'"),
    "noise": ([*TABLE, "--noise", "loud"], "unknown noise 'loud'"),
    "balance": ([*IMAGES, "--balance", "magic"], "unknown remedy for class imbalance 'magic'"),
    "dataset": (["--dataset", "cifar11"], "cifar11"),
    "no file": (["--dataset", "medmnist", "--path", "nowhere.npz"], "no file nowhere.npz"),
    "members": ([*IMAGES, "--members", "0"], "--members must be at least 1, not 0"),
    "epochs": ([*IMAGES, "--epochs", "0"], "--epochs must be at least 1, not 0"),
    "steps": ([*IMAGES, "--steps", "-3"], "--steps must be at least 1, not -3"),
    "both": ([*IMAGES, "--steps", "3", "--epochs", "3"], "--epochs and --steps exclude each other"),
    "eval every": ([*IMAGES, "--eval-every", "0"], "--eval-every must be at least 1"),
    "eval draws": ([*IMAGES, "--eval-draws", "-1"], "--eval-draws must be at least 1"),
    "keep": ([*IMAGES, "--keep", "0"], "--keep must be at least 1"),
    "patience": ([*IMAGES, "--patience", "0"], "--patience must be at least 1"),
    "no validation": (
        ["--net", "digits", "--patience", "3"],
        "need a validation part; the data set digits has",
    ),
    "no validation 2": (["--net", "digits", "--plateau-patience", "3"], "need a validation part"),
    "monitor": ([*IMAGES, "--monitor", "val_rmse"], "--monitor must be val_nll or val_accuracy for a, not"),
    "limit": ([*IMAGES, "--limit", "0"], "--limit must be at least 1, not 0"),
    "record": ([*IMAGES, "--method", "map", "--record-std"], "variational posteriors; map has none"),
    "batch": ([*IMAGES, "--batch-size", "41"], "between 1 and the 40 training examples, not 41"),
    "no batch": ([*IMAGES, "--batch-size", "-1"], "--batch-size must be at least 1, not -1"),
    "rate": ([*IMAGES, "--learning-rate", "-1"], "learning rate must be a positive number, not -1.0"),
    "warmup": ([*IMAGES, "--warmup", "-1"], "warm-up must end before step"),
    "long warmup": ([*IMAGES, "--steps", "9", "--warmup", "9"], "warm-up must end before step 9"),
    "plateau": ([*IMAGES, "--plateau-patience", "1", "--plateau-factor", "2"], "reduce-on-plateau wants"),
    "beta": ([*IMAGES, "--beta", "-0.5"], "--beta and --beta-warmup must not be negative"),
    "beta warmup": ([*IMAGES, "--beta-warmup", "-1"], "--beta and --beta-warmup must not be negative"),
    "samples": ([*IMAGES, "--num-samples", "0"], "num_samples must be at least 1"),
    "gamma": ([*IMAGES, "--balance", "focal", "--focal-gamma", "-1"], "gamma of 0 or more, not -1.0"),
    "net 1": ([*IMAGES, "--net", "mlp(hidden=(100))"], "cannot build mlp(hidden=(100)): "),
    "net 2": ([*IMAGES, "--net", "mlp(hidden=(0,))"], "cannot build mlp(hidden=(0,)): "),
    "net 3": ([*IMAGES, "--net", "mlp(hidden=(2.5,))"], "cannot build mlp(hidden=(2.5,)): "),
    "prior 2": ([*IMAGES, "--prior", "isotropic(std='a')"], "cannot build isotropic(std='a'): "),
    "seed": ([*IMAGES, "--seed", "-1"], "--seed must lie between 0 and 4294967295"),
    "seed 2": ([*IMAGES, "--seed", "4294967296"], "--seed must lie between 0 and 4294967295"),
    "beta nan": ([*IMAGES, "--beta", "nan"], "must not be negative, nor infinite"),
    "brackets": ([*IMAGES, "--out", "a[b]"], "a path with '[' cannot hold checkpoints"),
    "rotation": ([*IMAGES, "--rotation", "-5"], "rotation must lie in 0..180 degrees, not -5.0"),
    "zoom": ([*IMAGES, "--zoom", "1.2", "0.8"], "zoom must be two positive factors"),
    "big crop": ([*IMAGES, "--crop", "9"], "--crop 9 does not fit inputs of shape (8, 8, 1)"),
    "no crop": ([*IMAGES, "--crop", "0"], "crop must be at least 1 pixel, not 0"),
    "stride": ([*IMAGES, "--crop-stride", "2"], "--crop-stride needs --crop"),
    "stride 0": ([*IMAGES, "--crop", "6", "--crop-stride", "0"], "--crop-stride must be at least 1"),
    "small images": ([*IMAGES, "--net", "lenet"], "at least 12x12 pixels"),
    "small crops": ([*IMAGES, "--crop", "3"], "digits needs images (B, H, W, C) of at least 4x4 pixels"),
    "table rotated": ([*TABLE, "--rotation", "5"], "augmentation is for images; the data set a has none"),
    "table cropped": ([*TABLE, "--crop", "2"], "--crop 2 does not fit inputs of shape (3,)"),
    "table balanced": (
        [*TABLE, "--balance", "focal"],
        "--balance is for classes; the data set a is a regression",
    ),
    "chains rotated": ([*HMC, "--rotation", "5"], "hmc samples the posterior of the data as they are"),
    "chains balanced": ([*HMC, "--balance", "over_sample"], "no augmentation, no --balance"),
    "chains of members": ([*HMC, "--members", "2"], "hmc runs --num-chains chains and takes no --members"),
    "chains": ([*HMC, "--num-chains", "0"], "--num-chains must be at least 1"),
    "blocks": ([*HMC, "--num-draws", "7"], "num_draws 7 must be a multiple of block_size 20"),
    "trajectory": ([*HMC, "--trajectory-length", "-1"], "trajectory_length must be a positive number"),
    "laplace": ([*IMAGES, "--prior", "laplace"], "closed-form KL needs a Gaussian prior"),
    "pretrained": ([*IMAGES, "--pretrained", "nowhere"], "no checkpoint at nowhere"),
    "pretrained by others": ([*IMAGES, "--pretrained", "foreign"], "damaged or of another run"),
    "foreign folder": ([*IMAGES, "--out", "foreign"], "not a run of train; nothing was changed"),
    "file in the way": ([*IMAGES, "--out", "a.npz"], "is a file"),
}


@pytest.fixture(scope="module")
def train():
    return lambda *arguments: train_command.main(tyro.cli(experiment.Config, args=[*map(str, arguments)]))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data and what lies in a user's way."""
    folder = tmp_path_factory.mktemp("place")
    medmnist(folder / "a.npz")
    table(folder / "a.csv")
    (folder / "foreign").mkdir()
    (folder / "foreign" / "thesis.txt").write_text("mine")
    return folder


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_told_in_one_line(name, train, place, monkeypatch):
    arguments, message = WRONG[name]
    monkeypatch.chdir(place)
    before = sorted(Path().rglob("*"))
    with pytest.raises(UserError) as caught:
        train(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(Path().rglob("*")) == before  # nothing begun, nothing overwritten


def test_a_folder_in_use_is_refused(tmp_path):
    path = medmnist(tmp_path / "a.npz")
    config = experiment.Config(
        dataset="medmnist", path=path, net="mlp", method="map", steps=2, batch_size=8, out=tmp_path / "run"
    )
    train_command.main(config)
    with files.held(config.out), pytest.raises(UserError, match="another process is at work in"):
        train_command.main(config)
    train_command.main(config)


def test_exit_codes(tmp_path):
    """0 for help, 2 with one line for a mistake, and for one that the parser finds."""
    wrong = run("--net", "resnet9", "--out", tmp_path / "run")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: unknown network 'resnet9'")
    assert wrong.stderr.count("\n") == 1
    assert run("--no-such-option").returncode == 2
    shown = run("--help")
    assert shown.returncode == 0
    text = re.sub(r"[│╭╮╰╯─\s]+", " ", shown.stdout.split(" options ")[1])
    flag = lambda field: re.search(rf" --{field.name.replace('_', '-')}[ ,]", text).start()
    places = [(flag(field), field) for field in dataclasses.fields(experiment.Config)]
    ends = [place for place, _ in places[1:]] + [len(text)]
    for (start, field), end in zip(places, ends, strict=True):
        words = re.sub(r"--\S+|\(default:.*?\)|\{.*?\}|\b(STR|INT|FLOAT|PATH)\b|None|\|", "", text[start:end])
        assert len(words.split()) >= 2, f"--{field.name} is not explained"


# --- a folder is found again, or refused -----------------------------------------------------------------


def short(*changes, path="a.npz"):
    """A run of four steps in the folder `done`."""
    return [*IMAGES[:2], "--path", path, *SHORT, "--batch-size", "20", "--out", "done", *changes]


@pytest.fixture(scope="module")
def finished(train, place, quick_compile):
    with contextlib.chdir(place):
        train(*short())
    return place


def test_other_settings_are_refused(finished, train, monkeypatch):
    monkeypatch.chdir(finished)
    before = Path("done/run.json").read_bytes()
    for changes, said in (
        (["--seed", "1"], "seed 0 there, 1 here"),
        (["--rotation", "3"], "rotation 0.0 there, 3.0 here"),
        (["--zoom", "0.9", "1.1"], "zoom None there, [0.9, 1.1] here"),
    ):
        with pytest.raises(UserError, match="holds a run with other settings") as error:
            train(*short(*changes))
        assert said in str(error.value)
    assert Path("done/run.json").read_bytes() == before


def test_the_same_data_elsewhere_are_the_same(finished, train, monkeypatch, tmp_path):
    """Path, data folder and what is kept may change; the folder knows the newest."""
    monkeypatch.chdir(finished)
    shutil.copytree("done", tmp_path / "done")
    shutil.copy("a.npz", tmp_path / "moved.npz")
    monkeypatch.chdir(tmp_path)
    before = Path("done/history.json").read_bytes()
    train(*short("--keep", 5, "--data-dir", tmp_path, path="moved.npz"))
    assert Path("done/history.json").read_bytes() == before
    config = json.loads(Path("done/run.json").read_text())["config"]
    assert (config["path"], config["keep"]) == ("moved.npz", 5)


@pytest.mark.parametrize("change", ["pixel", "label", "order", "sizes"])
def test_changed_data_are_refused(change, finished, train, monkeypatch, tmp_path):
    monkeypatch.chdir(finished)
    arrays = dict(np.load("a.npz"))
    if change == "pixel":
        arrays["test_images"][0, 0, 0] ^= 1
    elif change == "label":
        arrays["train_labels"][0] ^= 1
    elif change == "order":
        arrays |= {f"train_{what}": arrays[f"train_{what}"][::-1] for what in ("images", "labels")}
    else:
        arrays |= {f"val_{what}": arrays[f"val_{what}"][1:] for what in ("images", "labels")}
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(UserError, match="the data have changed since done was begun") as error:
        train(*short(path=tmp_path / "b.npz"))
    assert "\n" not in str(error.value)
    if change == "sizes":
        assert "[40, 16, 8] then, [40, 15, 8] now" in str(error.value)


@pytest.mark.parametrize(
    ("method", "devices"),
    [("vi", 1), ("laplace(form='diagonal')", 1), ("hmc(step_size=0.1)", 3), ("sgld", 3), ("mclmc", 3)],
)
def test_every_chain_has_a_device(method, devices):
    config = train_command.Config(method=method, num_chains=3)
    assert train_command.cpu_devices(config) == devices
