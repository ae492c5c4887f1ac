"""The rows of the package: what may import what. See `ROWS`; a new file needs a row, and one only."""

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
ROWS = [  # from the bottom: a module imports from rows below its own and never from its own or above
    "bnn_jax",
    "types",
    "noise",
    "trees parts splits pixels processes files",
    "corruptions style views artefacts",
    "lowering",
    "ops prepared norms",
    "data",
    "likelihoods/* priors/* posteriors/* nets/* data/* metrics balance inspection classic augment timing"
    " pieces",
    "objectives estimators hamiltonian curvature langevin microcanonical ensemble optimizers stream scores"
    " regression_scores draw_counts fusion distances psis",
    "infer/* predict diagnostics compare draws inference_data models builders streamed recorder alignment",
    "sharding checkpoint runs preparation weight_space evidence",
    "loop chains",
    "training settings",
    "experiment",
    "trained reference",
    "report/*",
    "commands/*",
    "cli",
    "study",
    "scripts/*",
    "benchmarks/*",
]
COMPOSERS = {"report/comparison", "report/dataset", "report/evaluation"}  # they put siblings together
PARTS = ("nets", "priors", "posteriors", "likelihoods", "data")
ONLY_IN = {  # third-party package: the modules that may import it; benchmarks measure it directly, too
    "orbax": {"checkpoint"},
    "numpyro": {"hamiltonian", "diagnostics"},
    "blackjax": {"microcanonical"},
}
DEVICE_NAMES = {"NamedSharding", "PartitionSpec", "AxisType", "make_mesh", "shard_map", "pmap"}
COLLECTIVES = {"psum", "pmean", "pmax", "pmin", "all_gather", "all_to_all", "ppermute", "psum_scatter"}


class Import(NamedTuple):
    where: str  # file:line
    importer: str  # our module, `infer/vi`
    target: str  # what is imported: `posteriors/mean_field`, or of others the dotted name
    ours: bool


def sources() -> dict[str, Path]:
    """Our modules, `infer/vi`, and a package's own `__init__` as `infer`; scripts as `scripts/compare`."""
    found = {}
    for folder in ("bnn_jax", "scripts", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT).with_suffix("")
            parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
            found["/".join(parts[1:] if folder == "bnn_jax" and len(parts) > 1 else parts)] = path
    return found


SOURCES = sources()
TREES = {module: ast.parse(path.read_text()) for module, path in SOURCES.items()}
PACKAGES = {module for module, path in SOURCES.items() if path.name == "__init__.py"}


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def imports(module: str, tree: ast.Module) -> list[Import]:
    """Every import statement of a file, also those inside functions, submodules told from names."""
    dotted = list(SOURCES[module].relative_to(ROOT).with_suffix("").parts)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(dotted[: len(dotted) - node.level]) if node.level else ""
            base = ".".join(filter(None, (base, node.module)))
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            target, ours = own(name)
            found.append(Import(place(SOURCES[module], node), module, target, ours))
    return found


def own(dotted: str) -> tuple[str, bool]:
    """(our module that a dotted name is or lies in, True), or (the name, False)."""
    parts = dotted.split(".")
    if parts[0] not in ("bnn_jax", "scripts", "benchmarks"):
        return dotted, False
    parts = parts[1:] if parts[0] == "bnn_jax" and len(parts) > 1 else parts
    while len(parts) > 1 and "/".join(parts) not in SOURCES:
        parts = parts[:-1]
    return ("/".join(parts) if "/".join(parts) in SOURCES else "bnn_jax"), True


def row(module: str) -> int | None:
    names = [entry.split() for entry in ROWS]
    for wanted in (module, f"{module.split('/')[0]}/*"):
        for number, entry in enumerate(names):
            if wanted in entry:
                return number
    return None


IMPORTS = [found for module, tree in TREES.items() for found in imports(module, tree)]
OURS = [found for found in IMPORTS if found.ours]


def complain(problems: list[str]) -> None:
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def test_the_files_are_found():
    assert {"types", "infer", "infer/hmc", "report", "scripts/compare"} <= set(SOURCES)
    assert ("infer/hmc", "hamiltonian") in {(i.importer, i.target) for i in OURS}
    assert own("bnn_jax.priors.independent") == ("priors", True)
    assert own("bnn_jax.priors.laplace.build") == ("priors/laplace", True)
    assert own("jax.numpy") == ("jax.numpy", False)


def test_every_module_has_one_row():
    complain(
        [
            f"{path.relative_to(ROOT)}: no row; give it one in tests/test_layers.py"
            for m, path in SOURCES.items()
            if row(m) is None
        ]
    )
    entries = " ".join(ROWS).split()
    assert len(entries) == len(set(entries))


def test_imports_go_down():
    problems = []
    for where, importer, target, _ in OURS:
        package = importer.split("/")[0]
        sibling = "/" in target and target.split("/")[0] == package
        allowed = (
            (target == package and importer != package)  # a package's own __init__ serves its members
            or (importer in COMPOSERS and sibling)
            or row(target) < row(importer)
        )
        if not allowed:
            why = "a sibling" if sibling else f"row {row(target)}, not below row {row(importer)}"
            problems.append(f"{where}: {importer} imports {target} ({why})")
    complain(problems)


def test_a_package_does_not_import_its_members():
    complain(
        [f"{i.where}: {i.importer} imports {i.target}" for i in OURS if i.target.startswith(f"{i.importer}/")]
    )


def test_methods_receive_parts_and_import_none():
    """What makes 'a method is one file that works with every network, prior and family' true."""
    complain(
        [
            f"{i.where}: {i.importer} imports {i.target}; take it as an argument"
            for i in OURS
            if i.importer.split("/")[0] == "infer" and i.target.split("/")[0] in PARTS
        ]
    )


@pytest.mark.parametrize("package", sorted(ONLY_IN))
def test_only_one_place_imports(package):
    users = [
        i for i in IMPORTS if i.target.split(".")[0] == package and not i.importer.startswith("benchmarks")
    ]
    assert users, f"nothing imports {package}: the rule is out of date"
    complain(
        [
            f"{i.where}: {i.importer} imports {i.target}; only {', '.join(sorted(ONLY_IN[package]))} may"
            for i in users
            if i.importer not in ONLY_IN[package]
        ]
    )


def annotations(tree: ast.Module) -> set[ast.AST]:
    """Every node inside a type annotation."""
    roots = []
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            roots.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            roots.append(node.returns)
    return {inner for root in roots if root is not None for inner in ast.walk(root)}


def test_only_sharding_names_devices():
    """Elsewhere a mesh is passed on and may be annotated, but never made, except by benchmarks; the maths has
    no collective."""
    problems = []
    for module, tree in TREES.items():
        typing = annotations(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names}  # the import of Mesh serves its annotations
            else:
                names = {getattr(node, "id", None), getattr(node, "attr", None)}
                if "Mesh" in names and module != "sharding" and node not in typing:
                    problems.append(f"{place(SOURCES[module], node)}: {module} uses Mesh beyond annotations")
            may_make = module == "sharding" or module.startswith("benchmarks/")
            wrong = names & (COLLECTIVES if may_make else COLLECTIVES | DEVICE_NAMES)
            problems += [f"{place(SOURCES[module], node)}: {module} names {name}" for name in sorted(wrong)]
    complain(problems)


def test_every_module_has_a_docstring():
    complain([f"{SOURCES[m].relative_to(ROOT)}: none" for m, t in TREES.items() if not ast.get_docstring(t)])


def test_every_public_function_has_a_docstring():
    complain(
        [
            f"{place(SOURCES[module], node)}: {node.name} has no docstring"
            for module, tree in TREES.items()
            if not module.startswith(("scripts", "benchmarks"))
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
        ]
    )
