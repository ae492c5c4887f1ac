"""Run folders: claimed once, found again, and nobody's files touched."""

import dataclasses
import io
import json
import os
from pathlib import Path

import jax
import pytest

from bnn_jax import runs
from bnn_jax.types import UserError


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    methods: tuple[str, ...] = ("map", "vi")
    path: Path | None = Path("data")
    out: Path | None = None


def config(**changes):
    return runs.as_config(Config(**changes), leave_out=("out",))


def refused(out, script="compare", **changes) -> str:
    with pytest.raises(UserError) as error:
        runs.claim(out, script, config(**changes))
    assert "\n" not in str(error.value)
    return str(error.value)


def content(folder):
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def test_as_config_is_plain_json():
    found = config(out=Path("x"))
    assert found == {"seed": 0, "methods": ["map", "vi"], "path": "data"}
    assert json.loads(json.dumps(found)) == found


def test_fresh_then_found_again(tmp_path):
    out = tmp_path / "deep" / "run"
    runs.claim(out, "compare", config())
    assert runs.read_mark(out, "compare") == config()
    before = content(out)
    runs.claim(out, "compare", config())
    assert content(out) == before
    (out / "results.json").write_text("{}")
    runs.claim(out, "compare", config())
    (tmp_path / "empty").mkdir()
    runs.claim(tmp_path / "empty", "compare", config())
    assert runs.read_mark(tmp_path / "empty", "compare") == config()


def test_other_settings_are_named(tmp_path):
    runs.claim(tmp_path / "run", "compare", config())
    before = content(tmp_path)
    message = refused(tmp_path / "run", seed=3, methods=("map",))
    assert "seed 0 there, 3 here" in message
    assert "methods ['map', 'vi'] there, ['map'] here" in message
    assert "path" not in message
    assert content(tmp_path) == before


def test_a_setting_newer_than_the_run_counts_as_its_default(tmp_path):
    runs.claim(tmp_path / "run", "train", {"seed": 1})
    newer = {"seed": 1, "view": "rgb"}
    runs.claim(tmp_path / "run", "train", newer, defaults={"seed": 0, "view": "rgb"})
    with pytest.raises(UserError, match="view 'rgb' there, 'hsv' here"):
        runs.claim(tmp_path / "run", "train", {"seed": 1, "view": "hsv"}, defaults={"seed": 0, "view": "rgb"})
    with pytest.raises(UserError, match="seed 1 there, 0 here"):
        runs.claim(tmp_path / "run", "train", {"seed": 0, "view": "rgb"}, defaults={"seed": 0, "view": "rgb"})


@pytest.mark.parametrize(
    "mark",
    [
        None,
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"project": "bnn_jax"}',
        '{"project": "other", "script": "compare", "config": {}}',
        '{"project": "bnn_jax", "script": "benchmark", "config": {}}',
        '{"project": "bnn_jax", "script": "compare"}',
        '{"project": "bnn_jax", "script": "compare", "config": [1]}',
        b"\xff\xfe\x00 no text",
    ],
)
def test_a_foreign_folder_stays_untouched(mark, tmp_path):
    (tmp_path / "thesis.tex").write_text("months of work")
    if mark is not None:
        (tmp_path / "run.json").write_bytes(mark if isinstance(mark, bytes) else mark.encode())
    before = content(tmp_path)
    assert "is not a run of compare; nothing was changed" in refused(tmp_path)
    assert content(tmp_path) == before


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "run").write_text("a file")
    assert "is a file" in refused(tmp_path / "run")
    assert "cannot write" in refused(tmp_path / "run" / "below")
    assert (tmp_path / "run").read_text() == "a file"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    assert "Permission denied" in refused(tmp_path / "run")


def test_an_unwritable_parent(tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    assert "cannot write to --out" in refused(tmp_path / "run")


def test_read_mark_of_nothing(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        runs.read_mark(tmp_path / "nowhere", "compare")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), object()])
def test_write_json_is_whole_or_not_at_all(bad, tmp_path):
    path = tmp_path / "results.json"
    runs.write_json(path, {"a": [1, 2.5, None, "ä"]})
    before = content(tmp_path)
    with pytest.raises((ValueError, TypeError)):
        runs.write_json(path, {"a": 1, "b": bad})
    assert content(tmp_path) == before
    assert runs.read_json(path) == {"a": [1, 2.5, None, "ä"]}
    assert path.read_text().endswith("}\n")


def test_write_json_leaves_the_old_file_when_the_disk_fails(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    runs.write_json(path, {"a": 1})

    class Full(io.TextIOWrapper):
        def write(self, text):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, *args, **given: Full(io.FileIO(self, "w")))
        with pytest.raises(OSError, match="No space"):
            runs.write_json(path, {"a": 2})
    assert runs.read_json(path) == {"a": 1}
    runs.write_json(path, {"a": 3})
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe\x00", b"{'a': 1}"])
def test_read_json(damage, tmp_path):
    path = tmp_path / "results.json"
    assert runs.read_json(path) is None
    path.write_bytes(damage)
    with pytest.raises(UserError, match=r"results.json is damaged.*delete it and run again") as error:
        runs.read_json(path)
    assert "\n" not in str(error.value)


def test_environment_is_json(tmp_path):
    runs.write_json(tmp_path / "environment.json", runs.environment())
    found = runs.read_json(tmp_path / "environment.json")
    assert {"python", "jax", "flax", "platform", "num_cores", "git_commit"} <= set(found)
    assert found["num_devices"] == 8


def test_free_settings_may_change_and_the_newest_are_kept(tmp_path):
    out = tmp_path / "run"
    claim = lambda **changes: runs.claim(out, "compare", config(**changes), free=("path",))
    claim()
    claim(path=Path("elsewhere"))
    assert runs.read_mark(out, "compare") == config(path=Path("elsewhere"))
    before = content(out)
    with pytest.raises(UserError, match="seed 0 there, 4 here") as error:
        claim(seed=4, path=Path("third"))
    assert "third" not in str(error.value)
    assert content(out) == before


def test_a_folder_whose_making_was_killed_is_taken(tmp_path):
    """The mark is written under another name first; that alone is no run and nobody's work."""
    (tmp_path / "run.json.tmp").write_text('{"project": "bnn')
    runs.claim(tmp_path, "compare", config())
    assert runs.read_mark(tmp_path, "compare") == config()
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json.tmp").write_text("")
    (tmp_path / "other" / "thesis.tex").write_text("months of work")
    assert "nothing was changed" in refused(tmp_path / "other")


def test_from_config_is_the_way_back(tmp_path):
    """Through JSON: paths and tuples again, what was left out by default."""
    for settings in (Config(), Config(3, ("map",), None, None), Config(path=Path("/data/x.npz"))):
        stored = json.loads(json.dumps(runs.as_config(settings, leave_out=("out",))))
        found = runs.from_config(Config, stored, tmp_path)
        assert found == settings
        assert found.path is None or isinstance(found.path, Path)
    assert runs.from_config(Config, {}, tmp_path) == Config()
    with pytest.raises(UserError, match=r"another version, whose settings differ \(colour, sed\)") as error:
        runs.from_config(Config, {"sed": 1, "colour": 2, "seed": 3}, tmp_path)
    assert str(tmp_path) in str(error.value)


def test_streams_are_apart_and_stay():
    """A key a name and seed; the same in every process."""
    words = lambda *a: tuple(jax.random.key_data(runs.stream(*a)).tolist())
    assert len({words(seed, name) for seed in (0, 1) for name in ("init", "map", "vi", "evaluate")}) == 8
    assert words(0, "map") == words(0, "map")
    want = jax.random.fold_in(jax.random.key(7), 3632233996)  # crc32 of "test", RFC 1952
    assert words(7, "test") == tuple(jax.random.key_data(want).tolist())


def test_slug():
    assert runs.slug("VI, low rank (5)") == "vi-low-rank-5"
    assert runs.slug("mlp(hidden=(9, 9))") == "mlp-hidden-9-9"
    assert runs.slug("sgld(step_size=0.5)") == "sgld-step_size-0.5"
