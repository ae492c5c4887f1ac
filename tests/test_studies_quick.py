"""Every study runs from its command to its page, small: on real data where they are at hand."""

import json
import os
import re
from pathlib import Path

import jax
import matplotlib.image
import pytest
from jax.experimental.compilation_cache import compilation_cache
from problems import load_script

from bnn_jax import data, study

FOLDERS = {path.stem: "scripts/studies" for path in Path(__file__).parent.parent.glob("scripts/studies/*.py")}
FOLDERS |= dict.fromkeys(("uci", "cold", "precision"), "benchmarks")
NAMES = sorted(FOLDERS)
GENERATED = ("kl_weight", "cold")  # need no files

pytestmark = pytest.mark.usefixtures("kept_programs")


@pytest.fixture(scope="module")
def kept_programs(own_programs):
    """The runs of a study forget what was compiled; here they find it again on disk, as scripts do."""
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.mark.parametrize("name", NAMES)
def test_a_study_runs_with_quick_and_continues_where_it_was(name, tmp_path, capsys):
    if name not in GENERATED and data.DATA_DIR not in os.environ:
        pytest.skip(f"raw data: set {data.DATA_DIR} to their folder")
    found = load_script(name, FOLDERS[name]).STUDY
    options = study.Options(quick=True, out=tmp_path)
    study.main(found, options)
    page = tmp_path / name / f"{name}.md"
    text = page.read_text()
    assert text.startswith(f"# {found.text.partition(chr(10))[0].rstrip('.')}\n")
    plan = study.planned(found, quick=True)
    assert all(f"| **{label}** |" in text for label in plan)
    record = json.loads((page.parent / study.RESULTS).read_text())
    assert set(record["methods"]) == set(plan)
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    drawn = {f"{name}/{path.name}" for path in page.with_suffix("").glob("*.png")}
    assert set(shown) == drawn
    for path in shown:
        assert matplotlib.image.imread(page.parent / path).std() > 0.01
    capsys.readouterr()
    again = found._replace(analyse=None)
    study.main(again, options)
    assert "steps" not in capsys.readouterr().out  # nothing is trained a second time
