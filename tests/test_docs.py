"""Every Python example in README and docs runs, and every file they link to exists."""

import re
from pathlib import Path

import pytest
from problems import load_script

from bnn_jax import parts

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
EXAMPLES = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL), 1)
]


@pytest.mark.parametrize("code", EXAMPLES)
def test_example_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_ci_runs_the_readme_command():
    commands = re.findall(r"```bash\n(.*?)\n```", (ROOT / "README.md").read_text())
    assert commands[1] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_page_of_methods_has_the_equation_of_each():
    text = load_script("readme", "scripts").equations()
    assert text in (ROOT / "docs" / "methods.md").read_text(), "run scripts/readme.py"
    formulas = dict(re.findall(r"`(\w+)`\. .+\n\n```text\n((?:.+\n)*)```", text))
    assert list(formulas) == sorted(parts.names("method"))
    assert all(formulas.values())
