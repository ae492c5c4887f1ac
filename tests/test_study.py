"""Studies: every script is sound, its commands give its settings, its page is exact."""

import dataclasses
import json
import shlex
import types
from pathlib import Path

import numpy as np
import pytest
import tyro
from problems import load_script

from bnn_jax import experiment, regression_scores, runs, scores, study
from bnn_jax.commands import evaluate, train
from bnn_jax.report import study_page
from bnn_jax.types import UserError

ROOT = Path(__file__).parent.parent


NAMES = sorted(path.stem for path in (ROOT / "scripts" / "studies").glob("*.py"))
PROBS = np.array([[0.6, 0.4], [0.3, 0.7], [0.8, 0.2]])
CLASSES = {*scores.classification(PROBS, [0, 1, 0]), "aurc", "temperature", "threshold"}
NUMBERS = set(regression_scores.regression(np.zeros((1, 3)), np.ones((1, 3)), np.zeros(3)))

# every study


def load(name):
    return load_script(name, "scripts/studies").STUDY


@pytest.mark.parametrize("name", NAMES)
def test_a_study_has_what_it_promises(name):
    found = load(name)
    assert found.name == name
    title, blank, text = found.text.strip().split("\n", 2)
    assert title.endswith(".")
    assert blank == ""
    assert text.strip()
    for quick in (False, True):
        configs = [config for all_ in study.planned(found, quick).values() for config in all_]
        assert all(config.out is None and config.data_dir is None for config in configs)
    assert all(found.runs.values())
    evaluate.Config(run=Path(), **{**found.evaluate, **found.quick_evaluate})
    known = (NUMBERS if configs[0].dataset == "table" else CLASSES) | {"seconds", "rhat_function_median"}
    assert found.columns
    assert set(found.columns) <= known
    for label, published in found.published.items():
        assert label not in found.runs
        assert published
        assert set(published) <= set(found.columns), label
        assert all(isinstance(value, float) for value in published.values())
    places = {
        p for label in found.runs for p in study.run_folders(Path("x"), label, [experiment.Config()] * 2)
    }
    assert len(places) == 2 * len(found.runs)
    shown = found.overview
    assert shown.score in found.columns
    assert {shown.network, shown.vi, (shown.other or (None, None))[1]} - {None} <= set(found.runs)
    assert shown.published is None or shown.score in found.published[shown.published]


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_a_study_give_its_settings(name):
    for configs in load(name).runs.values():
        for config in configs:
            assert parsed(study.command(config)) == config


def parsed(command):
    python, script, *words = shlex.split(command)
    assert (python, script) == ("python", "scripts/train.py")
    return tyro.cli(experiment.Config, args=words)


def test_any_settings_are_told_by_their_command():
    config = experiment.Config(
        path=Path("my images") / "it's",
        group_by=r"^p(\d+)_ *",
        stream=True,
        zoom=(0.9, 1.1),
        epochs=3,
        learning_rate=1e-5,
        out=Path("somewhere"),
        data_dir=Path("data"),
    )
    assert parsed(study.command(config)) == dataclasses.replace(config, out=None, data_dir=None)
    assert study.command(experiment.Config()) == "python scripts/train.py"


@pytest.mark.parametrize("quotes", ["it's", "it's $HOME", 'it\'s "so"', "it's `so`", "it's so!", "it's a\\b"])
def test_quotes_in_a_setting_are_told_by_its_command(quotes):
    config = experiment.Config(path=Path(quotes))
    assert parsed(study.command(config)) == config


def test_commands_are_easy_to_read():
    config = experiment.Config(method="laplace(form='full')")
    assert study.command(config) == """python scripts/train.py --method "laplace(form='full')\""""


# the page


def test_a_cell_exactly():
    one = [{"nll": 0.25, "nll_interval": [0.2, 0.3125], "seconds": 12.6, "ece": 0.1}]
    assert study_page.cell(one, "nll") == "0.250 (0.200 to 0.312)"
    assert study_page.cell(one, "seconds") == "13"
    assert study_page.cell(one, "ece") == "0.100"
    assert study_page.cell(one, "auroc") == "-"
    # 1, 2, 4: mean 7/3, variance ((4/3)^2 + (1/3)^2 + (5/3)^2) / 2 = 7/3, error sqrt(7/9)
    several = [{"rmse": 1.0, "seconds": 10}, {"rmse": 2.0, "seconds": 10}, {"rmse": 4.0, "seconds": 10}]
    assert study_page.cell(several, "rmse") == "2.333 ± 0.882"
    assert study_page.cell(several, "seconds") == "10 ± 0"
    alike = [{"accuracy": 0.9831}, {"accuracy": 0.9833}]  # an error of 0.0001 does not read 0.000
    assert study_page.cell(alike, "accuracy") == "0.9832 ± 0.0001"
    assert study_page.cell([{"accuracy": 1.0}] * 2, "accuracy") == "1.000 ± 0.000"
    assert study_page.cell([{}, *one], "nll") == "0.250 (0.200 to 0.312)"  # one of two runs has it


ENVIRONMENT = {"num_cores": 2, "platform": "cpu", "python": "3.11.1", "jax": "0.10.2", "git_commit": "abc"}
DATA = {"num_train": 4708, "num_val": 524, "num_test": 624}
REFERRAL = [
    {"referred": 0.0, "answered": 9, "accuracy": 0.75, "recall": 0.5},
    {"referred": 0.05, "answered": 8, "accuracy": 1.0},
]


def result(nll, num_draws=100, **changed):
    given = {"nll": nll, "nll_interval": [nll - 0.1, nll + 0.1], "coverage_95": 0.96, "seconds": 12.0}
    common = {"num_draws": num_draws, "interval": "some interval", "data": DATA, "environment": ENVIRONMENT}
    return given | common | {"referral": REFERRAL} | changed


def made(**changed):
    """A study as its script would be."""
    given = study.Study(
        script=Path(__file__).parent.parent / "scripts" / "studies" / "toys.py",
        text="Toys: two methods.\n\nOn toys. Nothing else.\n",
        runs={"MAP": [experiment.Config(method="map")], "VI, 2": [experiment.Config(seed=1)]},
        columns=("nll", "coverage_95", "seconds"),
        overview=study.Overview("toys", "nll", "MAP", "VI, 2", published="theirs, [x](y)"),
        evaluate={"num_draws": 3},
        published={"theirs, [x](y)": {"nll": 0.037}},
        referral=True,
        quick={"steps": 4},
        quick_evaluate={"num_draws": 2},
    )
    return given._replace(**changed)


def record(**methods):
    found = {label: {"command": f"the command of {label}", "runs": all_} for label, all_ in methods.items()}
    return {"study": "toys", "methods": found}


def test_a_page_exactly():
    page = study_page.markdown(made(), record(MAP=[result(0.3, num_draws=1)], VI=[result(0.2)]))
    assert (
        page
        == """# Toys: two methods

On toys. Nothing else.

|  | NLL, nats ↓ | coverage 95 | seconds |
| --- | ---: | ---: | ---: |
| theirs, [x](y) | 0.037 | - | - |
| **MAP** | 0.300 (0.200 to 0.400) | 0.960 | 12 |
| **VI** | 0.200 (0.100 to 0.300) | 0.960 | 12 |

Ours in bold; in brackets or after ±: some interval. 4,708 training, 524 validation and 624 test examples; \
predictions average 100 posterior draws, or all that a method has. Seconds: wall time of training beside \
other work on 2 cores (cpu), \
Python 3.11.1, jax 0.10.2, commit abc.

## When the most uncertain images go to a doctor

Accuracy and recall of the images that are still answered, by the share that is referred.

|  | 0% | 5% |
| --- | ---: | ---: |
| MAP | 0.750, 0.500 | 1.000, - |
| VI | 0.750, 0.500 | 1.000, - |

Everything on this page by `python scripts/studies/toys.py`; single runs by

```text
the command of MAP
the command of VI
```
"""
    )


def test_a_page_of_several_runs_on_several_data_and_machines():
    other = {"data": DATA | {"num_test": 7}, "environment": ENVIRONMENT | {"platform": "gpu"}}
    both = record(A=[result(0.3), result(0.5)], B=[result(0.1, **other), result(0.2, **other)])
    page = study_page.markdown(made(referral=False), both)
    assert "| **A** | 0.400 ± 0.100 | 0.960 ± 0.000 | 12 ± 0 |" in page
    assert "after ±: mean ± standard error over folds or seeds. " in page
    assert "524 validation and 624 test examples, or 4,708 training, 524 validation and 7 test" in page
    assert "on 2 cores (cpu), Python 3.11.1, jax 0.10.2, commit abc; 2 cores (gpu), " in page
    assert "doctor" not in page
    rows = [{**REFERRAL[0], "accuracy": 0.25}, {**REFERRAL[1], "recall": 0.5}]
    changed = record(A=[result(0.3), result(0.5, referral=rows)])
    assert "| A | 0.500, 0.500 | 1.000, 0.500 |" in study_page.markdown(made(), changed)


def test_the_table_of_many_studies_exactly():
    one = record(**{"MAP": [result(0.3)], "VI, 2": [result(0.2), result(0.4)]})
    shown = study.Overview("toys", "coverage_95", None, "VI, 2", ("HMC", "MAP"))
    other = made(script=Path("x/others.py"), overview=shown)
    assert study_page.overview([(made(), one), (other, one)]) == [
        "| study | of | network | VI | another posterior | others report |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| [toys](docs/studies/toys.md) | toys, NLL, nats ↓ "
        "| 0.300 (0.200 to 0.400) | 0.300 ± 0.100 | - | 0.037 |",
        "| [others](docs/studies/others.md) | toys, coverage 95 | - | 0.960 ± 0.000 | HMC 0.960 | - |",
    ]


def test_intervals_of_every_kind_are_told():
    page = study_page.markdown(made(), record(A=[result(0.3)], B=[result(0.2, interval="another")]))
    assert "after ±: some interval, or another. " in page


def test_the_arrows_are_right():
    down = {"nll", "ece", "ece_classwise", "brier", "aurc", "rmse", "mae", "interval_width_95"}
    neither = {
        "seconds",
        "rhat_function_median",
        "temperature",
        "threshold",
        "coverage_50",
        "coverage_90",
        "coverage_95",
    }
    up = (CLASSES | NUMBERS) - down - neither
    assert up == {
        "accuracy", "balanced_accuracy", "recall", "specificity", "precision", "f1", "auroc",
        "average_precision",
    }  # fmt: skip
    assert {name for name, arrow in study_page.BETTER.items() if arrow == "↓"} == down
    assert {name for name, arrow in study_page.BETTER.items() if not arrow} == neither
    assert not set(study_page.BETTER) & up


# running one


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """A study `toys` in a project of its own, whose commands only note what they are asked."""
    asked = []

    def fake_train(settings, found):
        assert found == ("data", settings.seed)
        asked.append(settings)
        settings.out.mkdir(parents=True, exist_ok=True)
        if settings.method == "map":
            runs.write_json(settings.out / "outcome.json", {"seconds": 2.0})
        else:  # as of chains
            runs.write_json(settings.out / "progress.json", {"seconds": 5.0, "blocks": 3})
            (settings.out / "map").mkdir(exist_ok=True)
            runs.write_json(settings.out / "map" / "outcome.json", {"seconds": 4.0})

    def fake_evaluate(given, found):
        settings = asked[-1]
        assert (settings.out, settings.data_dir) == (given.run, given.data_dir)
        config = runs.as_config(settings, leave_out=("out",))
        told = {"config": config, "evaluation": runs.as_config(given, leave_out=("run", "data_dir"))}
        scored = result(0.25, given.num_draws, **told, corruptions={"blur": []})
        runs.write_json(given.run / "evaluation.json", {k: v for k, v in scored.items() if k != "seconds"})

    monkeypatch.setattr(train, "main", fake_train)
    monkeypatch.setattr(evaluate, "main", fake_evaluate)
    monkeypatch.setattr(experiment, "load_data", lambda config: ("data", config.seed))
    found = made(script=tmp_path / "scripts" / "studies" / "toys.py")
    options = study.Options(out=tmp_path / "runs", data_dir=tmp_path / "data")
    return types.SimpleNamespace(root=tmp_path, asked=asked, study=found, options=options)


def test_a_study_runs_what_is_missing_and_tells_on_its_page_what_is_not_there(toys):
    page = toys.root / "docs" / "studies" / "toys.md"
    table = dataclasses.replace(toys.options, table=True)
    with pytest.raises(UserError, match="no results of toys yet: run it without --table"):
        study.main(toys.study, table)
    study.main(toys.study, dataclasses.replace(toys.options, only=("VI, 2",)))
    assert "\nNot run yet: MAP.\n" in page.read_text()
    assert "| **VI, 2** | 0.250 (0.150 to 0.350) | 0.960 | 9 |" in page.read_text()
    study.main(toys.study, toys.options)
    assert [settings.method for settings in toys.asked] == ["vi", "map"]
    assert toys.asked[0].out == toys.root / "runs" / "toys" / "vi-2-0"
    kept = json.loads((toys.root / "docs" / "results" / "toys.json").read_text())
    assert list(kept["methods"]) == ["MAP", "VI, 2"]
    assert [kept["methods"][label]["runs"][0]["seconds"] for label in ("MAP", "VI, 2")] == [2.0, 9.0]
    assert kept["methods"]["MAP"]["command"] == "python scripts/train.py --method map"
    kept_keys = set(kept["methods"]["MAP"]["runs"][0])
    assert not kept_keys & {"config", "evaluation", "corruptions"}
    before = page.read_text()
    assert "Not run yet" not in before
    page.unlink()
    study.main(toys.study, table)
    assert page.read_text() == before
    study.main(toys.study, toys.options)
    assert len(toys.asked) == 2


def test_what_is_recorded_with_the_same_settings_is_not_run_again(toys, capsys):
    """Results count where the run folders are gone, as in a fresh clone."""
    study.main(toys.study, toys.options)
    elsewhere = dataclasses.replace(toys.options, out=toys.root / "elsewhere")
    study.main(toys.study, elsewhere)
    assert len(toys.asked) == 2
    assert "MAP: recorded already\nVI, 2: recorded already" in capsys.readouterr().out
    changed = {**toys.study.runs, "MAP": [experiment.Config(method="map", beta=0.5)]}
    study.main(toys.study._replace(runs=changed), elsewhere)
    assert [(settings.method, settings.beta) for settings in toys.asked[2:]] == [("map", 0.5)]
    study.main(toys.study._replace(runs=changed, evaluate={"num_draws": 7}), elsewhere)
    assert [settings.method for settings in toys.asked[3:]] == ["map", "vi"]
    third = dataclasses.replace(toys.options, out=toys.root / "third", again=True, only=("VI, 2",))
    study.main(toys.study, third)
    assert [settings.method for settings in toys.asked[5:]] == ["vi"]
    kept = json.loads((toys.root / "docs" / "results" / "toys.json").read_text())
    assert list(kept["methods"]) == ["VI, 2"]  # MAP was recorded as the changed study judges


def test_pictures_of_scores_need_no_runs(toys):
    def draw(recorded, pictures):
        (pictures / "curve.png").write_bytes(b"")
        return [f"NLL {recorded['MAP']['runs'][0]['nll']}.", ""]

    drawn = toys.study._replace(draw=draw)
    study.main(drawn, toys.options)
    page = toys.root / "docs" / "studies" / "toys.md"
    (page.with_suffix("") / "curve.png").unlink()
    study.main(drawn, dataclasses.replace(toys.options, table=True))
    assert (page.with_suffix("") / "curve.png").exists()
    assert "\nNLL 0.25.\n\nEverything on this page" in page.read_text()


def test_quick_leaves_the_committed_page_alone(toys):
    study.main(toys.study, dataclasses.replace(toys.options, quick=True))
    assert [(settings.method, settings.steps) for settings in toys.asked] == [("map", 4), ("vi", 4)]
    assert not (toys.root / "docs").exists()
    where = toys.root / "runs" / "toys"
    assert json.loads((where / "results.json").read_text())["methods"]["MAP"]["runs"][0]["num_draws"] == 2
    assert "# Toys" in (where / "toys.md").read_text()
    default = dataclasses.replace(toys.options, out=None)
    assert study.folder(toys.study, default) == Path("runs/studies/toys")
    assert study.folder(toys.study, dataclasses.replace(default, quick=True)) == Path("runs/quick/toys")


def test_quick_may_leave_labels_out(toys):
    some = toys.study._replace(quick_labels=["VI, 2"])
    study.main(some, dataclasses.replace(toys.options, quick=True))
    assert [settings.method for settings in toys.asked] == ["vi"]
    study.main(some, dataclasses.replace(toys.options, out=toys.root / "full"))
    assert [settings.method for settings in toys.asked[1:]] == ["map", "vi"]


def test_what_goes_beyond_scores_is_recorded_and_shown_when_all_runs_are_there(toys, capsys):
    def analyse(folders, pictures, quick, load):
        assert folders["VI, 2"] == [toys.root / "runs" / "toys" / "vi-2-0"]
        assert pictures.is_dir()
        (pictures / "curve.png").write_bytes(b"")
        return {"slope": 3, "quick": quick}

    sections = lambda found: [f"The slope is {found['slope']}.", ""]
    deeper = toys.study._replace(analyse=analyse, sections=sections)
    page = toys.root / "docs" / "studies" / "toys.md"
    study.main(deeper, dataclasses.replace(toys.options, only=("VI, 2",)))
    assert 'still missing: "MAP"; no page yet' in capsys.readouterr().out
    assert not page.exists()
    study.main(deeper, toys.options)
    assert (toys.root / "docs" / "studies" / "toys" / "curve.png").exists()
    assert "\nThe slope is 3.\n\nEverything on this page" in page.read_text()
    record = json.loads((toys.root / "docs" / "results" / "toys.json").read_text())
    assert record["analysis"] == {"slope": 3, "quick": False}


def test_runs_of_a_study_that_was_changed_are_refused(toys):
    """A table must not put new settings beside scores of old ones; where the data lie may change."""
    study.main(toys.study, toys.options)
    study.main(toys.study, dataclasses.replace(toys.options, data_dir=None))
    changed = {**toys.study.runs, "MAP": [experiment.Config(method="map", epochs=3, beta=0.5)]}
    before = (toys.root / "docs" / "results" / "toys.json").read_bytes()
    with pytest.raises(UserError, match=r"map-0 was trained with other settings \(epochs, beta\)") as caught:
        study.main(toys.study._replace(runs=changed), toys.options)
    assert "\n" not in str(caught.value)
    assert (toys.root / "docs" / "results" / "toys.json").read_bytes() == before


def test_a_setting_that_is_new_since_a_run_counts_as_its_default(toys):
    study.main(toys.study, toys.options)
    for place in (toys.root / "runs" / "toys").iterdir():
        record = json.loads((place / "evaluation.json").read_text()) if place.is_dir() else None
        if record:
            del record["config"]["view"]
            runs.write_json(place / "evaluation.json", record)
    study.main(toys.study, toys.options)
    assert len(toys.asked) == 2
    changed = {**toys.study.runs, "MAP": [experiment.Config(method="map", view="hsv")]}
    with pytest.raises(UserError, match=r"was trained with other settings \(view\)"):
        study.main(toys.study._replace(runs=changed), toys.options)


def test_a_study_that_judges_differently_now_judges_again(toys):
    study.main(toys.study, toys.options)
    deeper = toys.study._replace(evaluate={"num_draws": 7})
    study.main(deeper, dataclasses.replace(toys.options, only=("MAP",)))
    kept = json.loads((toys.root / "runs" / "toys" / "map-0" / "evaluation.json").read_text())
    assert kept["evaluation"]["num_draws"] == kept["num_draws"] == 7
    assert [settings.method for settings in toys.asked] == ["map", "vi", "map"]


def test_unknown_labels_are_told_in_one_line(toys):
    with pytest.raises(UserError, match=r'^toys has no run "VI": choose from "MAP", "VI, 2"$'):
        study.main(toys.study, dataclasses.replace(toys.options, only=("VI", "MAP")))
    assert not toys.asked


def test_data_are_read_once_for_neighbours_and_again_for_others(monkeypatch):
    read = []
    monkeypatch.setattr(experiment, "load_data", lambda config: read.append(config) or object())
    load = study.loader()
    first, same, other = (experiment.Config(method=m, fold=f) for m, f in (("map", 0), ("vi", 0), ("vi", 1)))
    assert load(first) is load(same)
    assert load(other) is not load(first)
    assert read == [first, other, first]
