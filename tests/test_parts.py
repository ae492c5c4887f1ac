"""Parts by name, and the arguments that a part asks for."""

import functools

import numpy as np
import pytest

from bnn_jax import parts
from bnn_jax.types import UserError

FIRST = {
    "network": "digits",
    "prior": "fan_in",
    "likelihood": "categorical",
    "posterior": "mean_field",
    "method": "hmc",
    "data set": "digits",
}


@pytest.mark.parametrize("kind", parts.KINDS)
def test_every_part_is_found_by_its_name(kind):
    names = parts.names(kind)
    assert names == sorted(names)
    assert FIRST[kind] in names
    for name in names:
        function = parts.find(kind, name)
        assert callable(function)
        assert function.__doc__, f"{kind} {name} says nothing about itself"
        assert function.__name__ == parts.KINDS[kind][1]


@pytest.mark.parametrize("kind", parts.KINDS)
@pytest.mark.parametrize("name", ["nonesuch", "", "../types", "__init__"])
def test_unknown_names_list_the_choices(kind, name):
    with pytest.raises(UserError, match=f"unknown {kind} .*choose from") as error:
        parts.find(kind, name)
    assert all(choice in str(error.value) for choice in parts.names(kind))
    assert "\n" not in str(error.value)


def test_a_name_may_set_arguments():
    assert parts.find("network", "mlp(hidden=(7, 5))")(3).hidden == (7, 5)
    assert parts.find("network", "mlp()")(3).hidden == (256, 256)
    prior = parts.find("prior", "isotropic(std=0.25)")()
    assert prior.scale({"w": np.zeros(2, np.float32)})["w"].tolist() == [0.25, 0.25]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mlp(width=3)", "network mlp has no argument width: choose from hidden"),
        ("mlp(num_outputs=3)", "network mlp has no argument num_outputs: choose from hidden"),
        ("lenet(hidden=3)", "network lenet has no argument hidden: choose from none"),
        ("mpl(hidden=3)", "unknown network 'mpl'"),
        ("mlp(hidden=(3)", "cannot read the network"),
        ("mlp((3, 4))", "cannot read the network"),
        ("mlp(**{'hidden': (3,)})", "cannot read the network"),
        ("mlp(hidden=open('x'))", "cannot read the network"),
        ("nets.mlp(hidden=(3,))", "cannot read the network"),
        ("mlp(hidden=(3,)) + 1", "cannot read the network"),
    ],
)
def test_bad_arguments_of_a_name_are_told(name, message):
    with pytest.raises(UserError) as error:
        parts.find("network", name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_arguments_of_the_wrong_kind_are_told():
    """Where they break the part; without arguments a failure is a bug and keeps its traceback."""
    with pytest.raises(UserError, match=r"^cannot build isotropic\(std='a'\): "):
        parts.find("prior", "isotropic(std='a')")()
    for error in (TypeError("no\nmore"), ValueError("no"), ZeroDivisionError("no")):
        with (
            pytest.raises(UserError, match=r"^cannot build mlp\(hidden=3\): no$"),
            parts.told("mlp(hidden=3)"),
        ):
            raise error
        with pytest.raises(type(error), match="no") as bug, parts.told("mlp"):
            raise error
        assert bug.value is error
    with pytest.raises(UserError, match=r"^mine$"), parts.told("mlp(hidden=3)"):
        raise UserError("mine")


def test_what_a_name_sets_is_not_offered_anew():
    build = functools.partial(lambda a, b=2: (a, b), b=7)
    assert parts.call(build, {"a": 1, "b": 4}) == (1, 7)


def test_call_passes_what_is_asked_for():
    build = lambda a, b=2, *, c=3: (a, b, c)
    assert parts.call(build, {"a": 1, "c": 5, "unwanted": 7}) == (1, 2, 5)
    assert parts.call(build, {"a": 1, "b": 4}) == (1, 4, 3)
    with pytest.raises(UserError, match=r"wants a; offered are b, z$"):
        parts.call(build, {"b": 1, "z": 2})


def test_files_with_an_underscore_are_not_parts(tmp_path, monkeypatch):
    """A package of one's own: a part and a helper."""
    package = tmp_path / "my_parts"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text("def build():\n    return 42\n")
    (package / "_helper.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(parts.KINDS, "thing", ("my_parts", "build"))
    assert parts.names("thing") == ["mine"]
    assert parts.call(parts.find("thing", "mine"), {}) == 42
