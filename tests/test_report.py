"""The report package: exact tables, a self-contained page, pictures that draw without warnings."""

import copy
import io
import re
import struct

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console

from bnn_jax import style
from bnn_jax.report import entropy, html, plots, tables

pytestmark = pytest.mark.filterwarnings("error")

RESULTS = {
    "data": {"num_classes": 10},
    "config": {"seed": 0, "hmc": {"num_chains": 2, "thin": None}},
    "methods": {
        "map": {
            "accuracy": 0.958,
            "accuracy_interval": [0.938, 0.976],
            "nll": 0.1,
            "nll_interval": None,
            "brier": None,
            "ece": 0.012,
            "ece_interval": [0.013, 0.031],
            "agreement": 0.966,
            "agreement_interval": [0.946, 0.981],
            "total_variation": 0.084,
            "total_variation_interval": [0.075, 0.093],
            "seconds": 3.14,
            "num_draws": 1,
            "note": "one point",
        },
        "a|b": {"accuracy": 0.5, "seconds": None, "total_variation": 0.042},
        "hmc": {"accuracy": 0.972, "accuracy_interval": [0.958, 0.986], "seconds": 1204.2, "note": ""},
    },
    "reference": "hmc",
    "floor": {"agreement": 0.986, "total_variation": 0.021, "total_variation_interval": [0.018, 0.025]},
    "diagnostics": {
        "hmc": {
            "rhat_function_median": 1.0034,
            "rhat_function_q95": 1.02,
            "rhat_weight_median": None,
            "ess_function_min": 212.4,
            "acceptance": 0.83,
            "step_size": [0.0112, None],
            "num_steps": [50, 0],
            "divergences": 0,
            "moved": [True, False],
            "status": ["ok", "frozen"],
        }
    },
}
POINTS, CLASSES = 60, 4


def bare(**changes):
    """A results dict of one method that knows next to nothing."""
    given = {"methods": {"hmc": {}}, "reference": "hmc", "floor": None, "diagnostics": None}
    return {"data": {"num_classes": 10}, **given, **changes}


def predictions(seed, sharpness=2.0, always_right=False):
    """Probabilities (T, K) that are mostly right about `labels()`."""
    logits = np.random.default_rng(seed).normal(size=(POINTS, CLASSES))
    logits[np.arange(POINTS), labels()] += 30.0 if always_right else 1.5
    p = np.exp(sharpness * (logits - logits.max(1, keepdims=True)))
    return p / p.sum(1, keepdims=True)


def labels():
    return np.arange(POINTS) % CLASSES


# tables


def test_rows_exactly():
    assert tables.rows(RESULTS) == [
        [
            "method",
            "accuracy ↑",
            "NLL, nats ↓",
            "Brier ↓",
            "ECE ↓",
            "agreement with hmc ↑",
            "total variation to hmc ↓",
            "seconds",
        ],
        ["map", "0.958 ± 0.020", "0.100", "-", "0.012 ± 0.019", "0.966 ± 0.020", "0.084 ± 0.009", "3.1"],
        ["a|b", "0.500", "-", "-", "-", "-", "0.042", "-"],
        [
            "hmc (chain 2 frozen)",
            "0.972 ± 0.014",
            "-",
            "-",
            "-",
            "floor 0.986",
            "floor 0.021 ± 0.004",
            "1204",
        ],
    ]


def test_further_distances_exactly():
    results = copy.deepcopy(RESULTS)
    results["methods"]["map"] |= {"w2": 0.1234, "entropy_gap": -0.05, "entropy_gap_interval": [-0.08, -0.02]}
    results["floor"]["w2"] = 0.01
    assert tables.distances(results) == [
        ["method", "symmetric KL, nats ↓", "W2 of draws ↓", "entropy gap, nats → 0", "calibration gap → 0"],
        ["map", "-", "0.123", "-0.050 ± 0.030", "-"],
        ["a|b", "-", "-", "-", "-"],
        ["hmc (chain 2 frozen)", "-", "floor 0.010", "-", "-"],
    ]


def test_tables_of_a_regression():
    results = bare(data={"num_classes": 0}, floor={"total_variation": 0.02, "w2": 0.1})
    results["methods"]["vi"] = {"rmse": 2.5, "nll": 2.0, "coverage_90": 0.87, "total_variation": 0.1}
    titles = [
        "RMSE ↓",
        "NLL, nats ↓",
        "90 % intervals hold → 0.9",
        "total variation to hmc ↓",
        "W2 of means to hmc ↓",
    ]
    assert tables.rows(results)[0] == ["method", *titles, "seconds"]
    assert tables.rows(results)[1] == ["hmc", "-", "-", "-", "floor 0.020", "floor 0.100", "-"]
    assert tables.rows(results)[2] == ["vi", "2.500", "2.000", "0.870", "0.100", "-", "-"]
    assert tables.distances(results)[0] == ["method", "symmetric KL, nats ↓", "entropy gap, nats → 0"]
    note = tables.notes(results)[0]
    assert note.startswith("Floor, hmc chain against chain: total variation 0.020. Total variation in units")


def test_weights_layer_by_layer_exactly():
    row = {"mean_difference": 1.0, "std_ratio": 0.5, "wasserstein": 0.1, "wasserstein_in_std": 1.2}
    found = {"methods": {"vi": {"a": row}, "map": {"a": row | {"std_ratio": None}}}, "floor": {"a": row}}
    assert tables.weights({**RESULTS, "weights": found})[1:] == [
        ["a", "vi", "1.000", "0.500", "1.200"],
        ["a", "map", "1.000", "-", "1.200"],
        ["a", "floor hmc", "1.000", "0.500", "1.200"],
    ]
    assert len(tables.weights({**RESULTS, "weights": found | {"floor": {}}})) == 3


def test_notes_exactly():
    assert tables.notes({**RESULTS, "interval": "90 % interval over test points"}) == [
        "hmc: chain 2 frozen, left out.",
        "map: one point.",
        "Floor, hmc chain against chain: total variation 0.021 ± 0.004, agreement 0.986. "
        "Total variation in units of the floor: map 4.0, a|b 2.0.",
        "hmc: R-hat of function values: median 1.003; 95 % below 1.02; smallest effective sample size of "
        "function values 212.4; acceptance 0.83; divergences 0.",
        "± reaches the farther end of the 90 % interval over test points.",
    ]


def test_good_chains_are_not_mentioned():
    results = copy.deepcopy(RESULTS)
    results["diagnostics"]["hmc"]["status"] = ["ok", "ok"]
    assert tables.rows(results)[-1][0] == "hmc"
    assert not any("left out" in note for note in tables.notes(results))


def test_every_bad_chain_of_four_is_named():
    results = bare(diagnostics={"hmc": {"status": ["frozen", "ok", "diverged", "ok"]}})
    assert tables.rows(results)[1][0] == "hmc (chain 1 frozen, chain 3 diverged)"
    assert tables.notes(results)[:2] == ["hmc: chain 1 frozen, left out.", "hmc: chain 3 diverged, left out."]


def test_markdown_is_a_github_table_and_escapes_pipes():
    text = tables.markdown(RESULTS)
    table, notes = text.split("\n\n")
    lines = table.splitlines()
    assert lines[1] == "| --- |" + " ---: |" * 7
    assert lines[3] == r"| a\|b | 0.500 | - | - | - | - | 0.042 | - |"
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {9}
    assert notes.startswith("- hmc: chain 2 frozen, left out.\n- ")
    assert text.endswith(".\n")


@pytest.mark.parametrize("width", [80, 100])
def test_console_fits_and_names_the_bad_chain(width):
    results = copy.deepcopy(RESULTS)
    results["methods"]["[red]"] = {"accuracy": 0.9}  # a name is text, not markup
    console = Console(file=io.StringIO(), width=width)
    console.print(tables.console(results))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for words in ("hmc: chain 2 frozen, left out.", "floor", "± 0.014", "[red]"):
        assert words in text


def test_tables_of_next_to_nothing():
    assert tables.rows(bare())[1] == ["hmc", *["-"] * 7]
    assert tables.notes(bare()) == ["No noise floor: it takes two good chains of hmc."]
    assert tables.chains(bare()) == [["chain"]]


def test_chains_and_settings_exactly():
    assert tables.chains(RESULTS) == [
        ["chain", "status", "step size", "steps a draw", "moved"],
        ["hmc: chain 1", "ok", "0.0112", "50", "yes"],
        ["hmc: chain 2", "frozen", "-", "0", "no"],
    ]
    assert tables.settings(RESULTS["config"]) == [
        ["setting", "value"],
        ["seed", "0"],
        ["hmc.num_chains", "2"],
        ["hmc.thin", "-"],
    ]


# html


@pytest.fixture
def page(tmp_path):
    figure = plots.distances(RESULTS)
    style.save(figure, tmp_path / "new" / "a.png")
    png = (tmp_path / "new" / "a.png").read_bytes()
    evil = "<script>alert('x')</script>"
    sections = [
        html.Section(
            evil, f"one {evil}\n\ntwo", [(f'"{evil}', figure)], [["a", evil], [evil, "<b>"]], [evil]
        ),
        ("plain tuple", "", [("bytes", png)]),
        html.Section("main", table=tables.rows(RESULTS), notes=tables.notes(RESULTS)),
    ]
    html.write(tmp_path / "sub" / "report.html", evil, f"lead {evil}", sections)
    return (tmp_path / "sub" / "report.html").read_text(encoding="utf-8")


def test_page_is_self_contained(page):
    assert not re.search(r"https?://|<link|@import|url\(", page)
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert re.findall(r'href="(.*?)"', page) == ["#s1", "#s2", "#s3"]


def test_page_escapes_everything(page):
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;") == 11
    assert 'alt="&quot;&lt;script' in page
    assert "<td>&lt;b&gt;</td>" in page


def test_page_shows_pictures_at_half_their_pixels_and_the_same_bytes_each_time(page, tmp_path):
    widths = re.findall(r'<img width="(\d+)"', page)
    assert widths == ["950", "950"]
    first, second = re.findall(r'src="(.*?)"', page)
    assert first == second  # figure and saved PNG: no date, no version inside


def test_page_holds_the_table_and_the_bad_chain(page):
    assert '<th scope="row">hmc (chain 2 frozen)</th><td>0.972&nbsp;±&nbsp;0.014</td>' in page
    assert "<li>hmc: chain 2 frozen, left out.</li>" in page


# plots


def figures():
    """Every plot on ordinary input, then on awkward input, by name."""
    a, b, y = predictions(0), predictions(1, sharpness=1.0), labels()
    sure = predictions(2, always_right=True)
    random = np.random.default_rng(0)
    std = {"conv": np.exp(random.normal(size=30)), "dense": np.exp(random.normal(size=200))}
    half = {name: s * 0.5 for name, s in std.items()}
    trace = random.normal(size=(4, 50))
    rhat = 1 + random.exponential(size=80) * 0.02
    nats, right = -(a * np.log(a)).sum(1), a.argmax(1) == y
    many = {f"m{i}": {"total_variation": i * 0.01, "agreement": 1 - 0.01 * i} for i in range(7)}
    uneven = {"map": {"total_variation": 0.01, "total_variation_interval": [0.02, 0.03]}}
    return {
        "distances": lambda: plots.distances(RESULTS),
        "distances, reference only": lambda: plots.distances(bare()),
        "distances, nothing known": lambda: plots.distances(bare(methods={"map": {}, "hmc": {}})),
        "distances, many methods": lambda: plots.distances(bare(methods=many)),
        "distances, value outside interval": lambda: plots.distances(bare(methods=uneven)),
        "reliability": lambda: plots.reliability({"map": a, "hmc": b}, y),
        "distances, dollars": lambda: plots.distances(bare(methods={"a $ b $x": {"agreement": 0.5}})),
        "reliability, always right": lambda: plots.reliability({"map": sure}, y, num_bins=5),
        "scatter": lambda: plots.probability_scatter(a, b, y, "vi", "hmc"),
        "scatter, same name": lambda: plots.probability_scatter(sure, sure, y, "hmc", "hmc"),
        "weight_std": lambda: plots.weight_std(std, half, "vi", "hmc"),
        "weight_std, all zero": lambda: plots.weight_std({"w": np.zeros(3)}, {"w": np.ones(3)}, "map", "hmc"),
        "traces": lambda: plots.traces({f"image {i}": trace for i in range(5)}, "probability"),
        "traces, one chain": lambda: plots.traces({"image": trace[:1]}, "probability"),
        "traces, one draw": lambda: plots.traces({"image": trace[:, :1]}, "probability"),
        "rhat": lambda: plots.rhat_histograms(rhat, 1 + 30 * (rhat - 1)),
        "rhat, NaN and infinite": lambda: plots.rhat_histograms(
            np.full(5, np.nan), np.array([np.inf, np.nan, 0.999, 1.2])
        ),
        "entropy": lambda: entropy.split(
            {"map": nats, "vi": nats}, {"map": 0 * nats, "vi": nats}, {"map": right, "vi": right}
        ),
        "entropy, none wrong": lambda: entropy.split({"vi": nats}, {"vi": nats}, {"vi": right | True}),
        "entropy, groups": lambda: entropy.groups(
            [
                entropy.Row("right", nats, nats, "#0072B2"),
                entropy.Row("digits", nats[:0], nats[:0], "#777777"),
            ],
            "Strange inputs",
        ),
        "disagreement": lambda: plots.disagreement(random.random((POINTS, 8, 8)), a, b, y, "map", "hmc"),
        "disagreement, colour, few": lambda: plots.disagreement(
            random.random((3, 8, 8, 3)), a[:3], b[:3], y[:3], "x", "x", count=5
        ),
    }


def test_the_reliability_plot_has_the_bins_of_the_calibration_error():
    """A confidence on an edge of two bins belongs to the lower one."""
    probs, y = np.array([[0.8, 0.2], [0.8, 0.2], [0.7, 0.3], [0.9, 0.1]]), np.array([0, 1, 0, 0])
    top, bottom = plots.reliability({"map": probs}, y, num_bins=5).axes[:2]
    (points,) = top.collections
    np.testing.assert_allclose(points.get_offsets(), [[(0.8 + 0.8 + 0.7) / 3, 2 / 3], [0.9, 1.0]])
    (stairs,) = bottom.patches
    np.testing.assert_array_equal(stairs.get_data().values, [0, 0, 0, 3, 1])


@pytest.mark.parametrize("name", figures())
def test_plot_draws_with_labels(name):
    figure = figures()[name]()
    assert isinstance(figure, Figure)
    figure.savefig(io.BytesIO(), dpi=50)
    shown = [axes for axes in figure.axes if axes.get_visible() and axes.axison]
    assert shown
    for axes in shown:  # panels that share an axis name it once: the lowest of a column, the first of a row
        assert axes.get_xlabel() or any(o.get_xlabel() for o in axes.get_shared_x_axes().get_siblings(axes))
        row = [o for o in shown if o.get_subplotspec().rowspan == axes.get_subplotspec().rowspan]
        assert any(o.get_ylabel() for o in row)


def test_rows_of_entropy_tell_how_many_examples_they_have():
    """Rows from the top in the order given; at most 500 dots, the bar over all."""
    many, few = np.linspace(0, 0.5, 1201), np.full(3, 0.2)
    rows = [
        entropy.Row("right", many, 2 * many, "#0072B2"),
        entropy.Row("wrong", few, few, "#D55E00", wrong=True),
    ]
    left, right = entropy.groups(rows, "x").axes
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["right (1,201)", "wrong (3)"]
    assert left.get_ylim()[0] > left.get_ylim()[1]
    assert [len(dots.get_offsets()) for dots in left.collections] == [500, 3]
    bars = [line.get_xdata() for line in right.lines if line.get_linewidth() == 5 and len(line.get_xdata())]
    np.testing.assert_allclose(bars, [[0.25, 0.75], [0.2, 0.2]])
    legend = [text.get_text() for text in left.figure.legends[0].get_texts()]
    assert legend == ["an example", "wrong", "middle half", "median"]


def test_style_is_the_house_style_and_leaves_the_callers_alone():
    with matplotlib.rc_context({"font.size": 3, "axes.grid": False}):
        figure = plots.distances(RESULTS)
        assert matplotlib.rcParams["font.size"] == 3
        assert not matplotlib.rcParams["axes.grid"]
    assert figure.axes[0].xaxis.label.get_size() == 10


def test_distances_show_value_floor_and_who_is_reference():
    figure = plots.distances(RESULTS)
    left, right = figure.axes
    assert "hmc" in figure.get_suptitle()
    assert left.get_title("left") == "noise floor (hmc against hmc): 0.021 ± 0.004"
    assert right.get_title("left") == "noise floor: 0.986"
    assert [text.get_text() for text in left.texts] == ["0.084", "0.042"]
    assert [text.get_text() for text in right.texts] == ["0.966", "not known"]
    assert left.get_xlim()[0] == 0
    assert right.get_xlim()[1] == 1


def test_scatter_counts_right_and_wrong():
    y = np.array([0, 0, 0, 0, 1])
    a = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.3, 0.7]])
    b = np.array([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8]])
    figure = plots.probability_scatter(a, b, y, "vi", "hmc")
    entries = [text.get_text() for text in figure.legends[0].get_texts()]
    assert entries == ["both right (2)", "only vi right (1)", "only hmc right (1)", "both wrong (1)"]


def test_weight_std_names_the_ratio_of_each_layer():
    figure = plots.weight_std(
        {"conv": np.array([1.0, 2.0, 0.0])}, {"conv": np.array([4.0, 8.0, 1.0])}, "vi", "hmc"
    )
    assert figure.legends[0].get_texts()[0].get_text() == "conv: 0.25 (n = 2)"


def test_rhat_counts_nan():
    figure = plots.rhat_histograms(np.array([1.0, 1.02, np.nan]), np.array([1.5]))
    assert figure.axes[0].get_title("left") == (
        "R-hat of function values: median 1.010, 50 % above 1.01 (n = 2, 1 NaN left out)"
    )


def test_disagreement_shows_the_largest_first():
    a = np.array([[1.0, 0.0], [0.5, 0.5], [0.9, 0.1]])
    b = np.array([[0.9, 0.1], [0.0, 1.0], [0.9, 0.1]])
    figure = plots.disagreement(np.zeros((3, 4, 4)), a, b, np.array([0, 1, 0]), "map", "hmc", count=2)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["true 1, TV 0.50", "true 0, TV 0.10"]


def test_colours_are_fixed_and_differ_among_known_methods():
    known = ["map", "vi", "hmc", "swag", "dropout", "laplace", "sgld", "sghmc", "nuts", "ensemble"]
    assert len({style.colour(name) for name in known}) == len({style.marker(name) for name in known}) == 10
    assert style.colour("HMC") == style.colour("hmc")
    assert style.colour("something new") == style.colour("something new") != style.colour("hmc")


def test_names_that_are_no_utf_8_are_drawn():
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")

    @style.styled
    def figure():
        made = style.canvas(3, 2, name)
        axes = made.subplots()
        axes.plot([1], [1], label=name)
        axes.set_title(name)
        axes.legend()
        return made

    texts = {text.get_text() for text in figure().findobj(Text)}
    assert "caf\ufffd.png" in texts
    assert name not in texts


def test_save_is_deterministic_and_names_no_software(tmp_path):
    figure = plots.traces({"a": np.zeros((2, 5))}, "nats")
    for name in ("a", "b"):
        style.save(figure, tmp_path / f"{name}.png", dpi=100)
    png = (tmp_path / "a.png").read_bytes()
    assert png == (tmp_path / "b.png").read_bytes()
    assert b"Software" not in png
    assert struct.unpack(">I", png[16:20])[0] == 950
