"""benchmarks/posteriors.py: settings that every method takes, tables that sort and count right."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from problems import load_script

from bnn_jax import parts, reference, runs
from bnn_jax.report import cost
from bnn_jax.settings import Config
from bnn_jax.types import UserError

posteriors = load_script("posteriors", "benchmarks")
references = load_script("make_references", "benchmarks")


def target(name):
    """A reference without draws."""
    config = {f.name: getattr(references.PROBLEMS[name], f.name) for f in dataclasses.fields(Config)}
    return reference.Reference(name, {"config": config}, None, None, None, {}, {})


def test_every_method_is_there():
    assert {posteriors.plain(label) for label in posteriors.METHODS} == set(parts.names("method"))
    assert sorted(sum(posteriors.FAMILIES.values(), ())) == sorted(parts.names("method"))
    assert list(posteriors.FAMILIES) == list(cost.FAMILIES)
    for method in posteriors.METHODS.values():
        parts.find("method", method["method"])  # or an argument that it does not have
    assert set(posteriors.TRAINING) == set(references.PROBLEMS)


@pytest.mark.parametrize("name", ["logistic", "digits"])
def test_subsampled_hmc_runs_where_its_expansion_holds(name):
    limited, holds = "HMC, subsampled", name == "logistic"
    known = target(name)
    assert posteriors.applicable(known) == [m for m in posteriors.METHODS if holds or m != limited]
    assert posteriors.applicable(known, ["MAP", limited]) == (["MAP", limited] if holds else ["MAP"])
    assert all(set(names) <= set(references.PROBLEMS) for names in posteriors.ONLY.values())
    assert set(posteriors.ONLY) <= set(posteriors.METHODS)


@pytest.mark.parametrize(
    ("name", "method", "trace", "expected"),
    [
        ("mnist160", "MAP", {}, 500 * 32 / 160),
        ("mnist160", "deep ensemble (5)", {}, 5 * 500 * 32 / 160),
        ("mnist160", "HMC, short", {"num_steps": 7.0}, 2 * (100 + 160 * 8)),
        ("mnist160", "HMC, subsampled", {"num_steps": 7.0}, 2 * (100 + 260 * 8 * 32 / 160 + 6)),
    ],
)
def test_passes_are_those_of_the_method(name, method, trace, expected, monkeypatch):
    """A subsampled chain counts its Hessian, a gradient of all data a weight, here of six."""
    config = posteriors.configured(target(name), method, 0, quick=False)
    chain = bool(trace)
    kept = SimpleNamespace(algorithm=SimpleNamespace(chain=chain), params={"w": np.zeros((2, 3))})
    monkeypatch.setattr(posteriors.experiment, "reopen", lambda place: kept)
    monkeypatch.setattr(posteriors.draws, "load", lambda *args: (None, trace))
    found = SimpleNamespace(x_train=np.zeros((160, 1)), num_classes=10)
    assert posteriors.passes(Path(), config, found) == pytest.approx(expected)


@pytest.mark.parametrize("name", references.PROBLEMS)
def test_only_method_and_training_change(name):
    problem = references.PROBLEMS[name]
    seen = set()
    for label in posteriors.METHODS:
        config = posteriors.configured(target(name), label, 1, quick=False)
        for field in ("dataset", "path", "net", "prior", "limit", "fold", "noise", "batch_size"):
            assert getattr(config, field) == getattr(problem, field)
        assert config.seed == 1
        seen.add(posteriors.content_name(label, config))
        short = posteriors.configured(target(name), label, 0, quick=True)
        assert short.steps == posteriors.QUICK["steps"]
        assert posteriors.content_name(label, short) not in seen
    assert len(seen) == len(posteriors.METHODS)


ROWS = [
    {
        "method": "MAP",
        "seed": 0,
        "total_variation": 0.3,
        "total_variation_interval": [0.2, 0.35],
        "passes": 10.0,
    },
    {
        "method": "MAP",
        "seed": 1,
        "total_variation": 0.5,
        "total_variation_interval": [0.4, 0.55],
        "passes": 12.0,
    },
    {
        "method": "SGLD",
        "seed": 0,
        "total_variation": 0.1,
        "total_variation_interval": [0.07, 0.12],
        "passes": 50.0,
    },
    {"method": "MCLMC", "seed": 0, "note": "all 2 chains are unsound"},
    {"method": "SGLD", "seed": 1, "note": "all 2 chains are unsound"},
]


def test_rows_of_other_settings_are_left_out(tmp_path):
    """Rows of today's settings count where their run folders are gone; a newer one replaces it."""
    known, results = target("digits"), tmp_path / "posteriors.json"
    places = {(label, config.seed): p for p, label, config in posteriors.planned(tmp_path, known, (), False)}
    name = lambda label, seed: places[label, seed].name
    recorded = {"run": name("SGLD", 0), **ROWS[2]}
    digits = [
        {**ROWS[0], "run": name("MAP", 0), "passes": 1.0},
        recorded,
        ROWS[3],
        {**ROWS[4], "run": "sgld-old"},
    ]
    runs.write_json(results, {"boston": ROWS[:1], "digits": digits})
    new = {"run": name("MAP", 0), **ROWS[0]}
    for place, row in ((places["MAP", 0], new), (tmp_path / "digits" / "map-seed0-00000000", ROWS[2])):
        place.mkdir(parents=True)
        runs.write_json(place / "row.json", row)
    posteriors.collect(tmp_path, known, False, results)
    assert runs.read_json(results) == {"boston": ROWS[:1], "digits": [new, recorded]}


def test_recorded_rows_are_not_run_again(tmp_path, monkeypatch):
    """And need no data: in a fresh clone nothing is left to do."""
    known, results = target("digits"), tmp_path / "posteriors.json"
    asked = []
    monkeypatch.setattr(posteriors, "RESULTS", results)
    monkeypatch.setattr(posteriors, "SEEDS", (0,))
    monkeypatch.setattr(posteriors, "write", lambda *args: None)
    monkeypatch.setattr(posteriors, "judged", lambda target, place, found, label, seed: {"method": label})
    monkeypatch.setattr(posteriors.train, "main", lambda config, found: asked.append(config.method))
    monkeypatch.setattr(reference, "names", lambda folder: ["digits"])
    monkeypatch.setattr(reference, "load", lambda name, folder: known)
    monkeypatch.setattr(reference, "problem", lambda target, data_dir: asked.append("data") or (None, None))
    monkeypatch.setattr(posteriors.runs, "write_json", write_with_folder(runs.write_json))
    run = lambda **given: posteriors.main(posteriors.Options(methods=("MAP", "SGLD"), **given))
    run(out=tmp_path / "here")
    assert asked == ["data", "map", "sgld"]
    run(out=tmp_path / "there")
    assert len(asked) == 3
    run(out=tmp_path / "there", again=True)
    assert asked[3:] == ["data", "map", "sgld"]
    assert [row["method"] for row in runs.read_json(results)["digits"]] == ["MAP", "SGLD"]


def write_with_folder(write):
    """`runs.write_json` where training, which makes the run's folder, is left out."""

    def replacement(path, value):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, value)

    return replacement


def test_means_over_seeds_and_the_wider_of_two_spreads():
    assert posteriors.summary(ROWS[:2], "total_variation") == pytest.approx((0.4, 0.1))
    assert posteriors.summary(ROWS[2:3], "total_variation") == pytest.approx((0.1, 0.03))
    assert posteriors.summary(ROWS[2:], "total_variation") == pytest.approx((0.1, 0.03))
    assert posteriors.summary(ROWS, "k_hat") is None
    assert list(posteriors.grouped(ROWS)) == ["MAP", "SGLD", "MCLMC"]
    first, second = posteriors.of_seeds(ROWS)
    assert [p[:2] for p in (first, second)] == [
        ("MAP", "modes and ensembles"),
        ("SGLD", "chains on minibatches"),
    ]
    np.testing.assert_allclose([first.cost, first.distance, *first.interval], [11, 0.4, 0.3, 0.5])


def test_the_table_is_sorted_by_distance():
    own = {"hmc": {"nll": 0.1}, "floor": {"total_variation": 0.02}}
    assert posteriors.table(ROWS, own) == [
        "| method | total variation ↓ | passes |",
        "| --- | ---: | ---: |",
        "| SGLD (seed 1: all 2 chains are unsound) | 0.100 ± 0.030 | 50 |",
        "| MAP | 0.400 ± 0.100 | 11 |",
        "| MCLMC (seed 0: all 2 chains are unsound) | - | - |",
        "| **HMC, the reference** | 0.020 | - |",
    ]


def test_the_page_tells_what_is_not_run(tmp_path):
    environment = {
        "num_cores": 2,
        "platform": "cpu",
        "python": "3.11.1",
        "jax": "0.10.2",
        "git_commit": "abc",
    }
    page = tmp_path / "posteriors.md"
    rows = [{**row, "environment": environment} for row in ROWS[:3]]
    posteriors.write({"boston": rows}, page, reference.FOLDER)
    text = page.read_text()
    assert "\n\nNot run yet: deep ensemble (5); MC dropout; " in text
    missing = text.partition("Not run yet: ")[2].partition(".\n")[0].split("; ")
    assert missing == [m for m in posteriors.METHODS if m not in ("MAP", "SGLD", "HMC, subsampled")]
    assert "\n\nWith fewer seeds than the others so far: SGLD.\n\n" in text
    assert (tmp_path / "images" / "posteriors_boston.png").exists()


def test_a_row_of_floors_for_every_method():
    rows = [{**row, "in_floors": 10 * row["total_variation"]} for row in ROWS[:3]]
    assert posteriors.floors({"digits": rows, "boston": rows[:2]}).splitlines() == [
        "| method | digits | boston |",
        "| --- | ---: | ---: |",
        "| MAP, `map` | 4.0 | 4.0 |",
        "| SGLD, `sgld` | 1.0 | - |",
    ]


def test_distance_against_cost_is_drawn():
    figure = cost.against_distance(posteriors.of_seeds(ROWS), 0.02, "total variation", "digits")
    figure.canvas.draw()
    axes = figure.axes[0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["1 SGLD", "2 MAP"]
    families = [text.get_text() for text in axes.get_legend().get_texts()]
    assert families == ["modes and ensembles", "chains on minibatches", "noise floor (HMC against HMC)"]
    assert axes.get_ylim()[0] < 0.02


def test_numbers_beside_points_keep_apart():
    same = [(100, 50.0), (103, 52.0), (100, 80.0), (101, 51.0), (300, 51.0)]
    heights = cost.spread(same)
    assert heights == [50.0, 68.0, 80.0, 59.0, 51.0]


def test_mistakes(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no reference posteriors in"):
        posteriors.main(posteriors.Options(references=tmp_path))
    (tmp_path / "digits.npz").touch()
    with pytest.raises(UserError, match="no gibbs here: choose from MAP, deep ensemble"):
        posteriors.main(posteriors.Options(methods=("gibbs",), references=tmp_path))
    monkeypatch.setattr(posteriors.reference, "load", lambda name, folder: target(name))
    with pytest.raises(UserError, match="HMC, subsampled can run on none of digits, only on logistic"):
        posteriors.main(posteriors.Options(methods=("HMC, subsampled",), references=tmp_path))
    with pytest.raises(UserError, match="no mars here: choose from"):
        posteriors.main(posteriors.Options(problems=("mars",), references=tmp_path))
    with pytest.raises(UserError, match="no problem mars: choose from digits"):
        references.main(references.Options(only=("mars",)))
