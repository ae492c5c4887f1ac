"""The picture and the table of predicted images: exact rows, and everything told in words."""

import io

import numpy as np
import pytest
from rich.console import Console
from scipy.special import softmax

from bnn_jax import metrics, style
from bnn_jax.report import prediction

NAMES = ["normal", "a $ name [red] <b> that is rather long"]


def case(num_classes=2, count=40, **changed):
    """(draws (D, K), record) of one image."""
    logits = np.linspace(0, 1, num_classes) + np.random.default_rng(0).normal(size=(count, num_classes))
    draws = softmax(logits, axis=-1)
    mean, known = draws.mean(0), NAMES if num_classes == 2 else [f"class {k}" for k in range(num_classes)]
    total, aleatoric, epistemic = (float(part[0]) for part in metrics.uncertainty(draws[:, None]))
    return draws, {
        "image": "/images/x.png",
        "figure": "x.png",
        "predicted": int(mean.argmax()),
        "predicted_name": known[int(mean.argmax())],
        "class_names": known,
        "probs": mean.tolist(),
        "probs_std": draws.std(0).tolist(),
        "num_draws": count,
        "total": total,
        "aleatoric": aleatoric,
        "epistemic": epistemic,
        "threshold": None,
        "referral_uncertainty": None,
        "refer": None,
        "label": None,
        "label_name": None,
        "correct": None,
    } | changed


def record(**changed):
    given = dict(
        predicted=1, predicted_name="sick", probs=[0.25, 0.75], probs_std=[0.1, 0.1], num_draws=9,
        total=0.5625, aleatoric=0.5, epistemic=0.0625,
    )  # fmt: skip
    return case()[1] | given | changed


WRONG = dict(label=0, label_name="normal", correct=False)
REFERRED = dict(threshold=0.4, referral_uncertainty=0.3, refer=True)


def texts(figure):
    """All words of a picture."""
    figure.savefig(io.BytesIO(), dpi=40)
    found = [figure.get_suptitle()]
    for axes in figure.axes:
        found += [axes.get_title(loc="left"), axes.get_xlabel(), *(t.get_text() for t in axes.texts)]
        found += [tick.get_text() for tick in axes.get_yticklabels()]
    found += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    return found


def drawn(draws, record, shape=(8, 8)):
    return prediction.figure(np.random.default_rng(0).random(shape), draws, record)


# the table


def test_rows_by_hand():
    assert prediction.rows([record()]) == [
        ["image", "predicted", "probability", "entropy", "alea-\ntoric", "epi-\nstemic"],
        ["x.png", "sick", "0.750 ± 0.100", "0.562", "0.500", "0.062"],
    ]
    both = prediction.rows([record(**REFERRED), record(**WRONG), record(refer=False, correct=True)])
    assert [row[6:] for row in both] == [["refer", "answer"], ["yes", "-"], ["-", "wrong"], ["no", "right"]]


def test_a_single_draw_has_no_spread():
    assert prediction.rows([record(num_draws=1)])[1][2] == "0.750"


def test_the_table_fits_80_columns_and_shows_text_as_it_is():
    long = record(image="/a/" + 9 * "person [red]" + "7.png", predicted_name=NAMES[1], **REFERRED, **WRONG)
    out = io.StringIO()
    Console(file=out, width=80).print(prediction.console([long, record()]))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if "7.png" in line)
    assert "person [" in row
    assert "…" in row.split("0.750")[0]  # both names, cut in the middle
    assert row.split()[-2:] == ["yes", "wrong"]
    assert len(lines) == 5  # two lines of header, a rule, and one line a record


# the picture


def test_the_headline_says_class_referral_and_truth_in_words():
    draws, found = case(**WRONG, **REFERRED)
    head = drawn(draws, found).get_suptitle().splitlines()
    k = found["predicted"]
    assert head == [
        f"Predicted: {NAMES[k]}, probability {found['probs'][k]:.3f} ± {found['probs_std'][k]:.3f}",
        f"Refer to a doctor: entropy {found['total']:.3f} nats, above 0.300",
        "True class: normal. The prediction is WRONG.",
    ]
    right = found | dict(label=1, label_name="sick", correct=True, refer=False)
    head = drawn(draws, right).get_suptitle().splitlines()
    assert head[1].startswith("No referral: ")
    assert head[2] == "True class: sick. The prediction is right."
    assert len(drawn(*case()).get_suptitle().splitlines()) == 1


def test_marks_stand_where_the_numbers_are():
    draws, found = case(threshold=0.4, referral_uncertainty=0.3, refer=True)
    figure = drawn(draws, found)
    _, strips, entropy = figure.axes
    dots = [np.sort(points.get_offsets()[:, 0]) for points in strips.collections]
    np.testing.assert_array_equal(dots, np.sort(draws, axis=0).T)
    lines = [line.get_xdata() for line in strips.lines]
    for k in (0, 1):
        assert any(np.array_equal(x, np.quantile(draws[:, k], [0.025, 0.975])) for x in lines)
        assert any(np.array_equal(x, [found["probs"][k]]) for x in lines)
    threshold = [line for line in strips.lines if np.array_equal(line.get_xdata(), [0.4, 0.4])]
    assert len(threshold) == 1
    assert np.mean(threshold[0].get_ydata()) == 1  # in the row of class 1
    bars = [(bar.get_x(), bar.get_width()) for bar in entropy.patches]
    assert bars == [(0, found["aleatoric"]), (found["aleatoric"], pytest.approx(found["epistemic"]))]
    assert entropy.patches[1].get_hatch()
    assert not entropy.patches[0].get_hatch()
    assert [list(line.get_xdata()) for line in entropy.lines] == [[0.3, 0.3]]
    words = texts(figure)
    assert "decision threshold 0.400" in words
    assert "referral above 0.300 nats" in words


def test_predicted_and_true_class_are_named_at_their_rows():
    draws, found = case(predicted=0, label=1, label_name=NAMES[1], correct=False)
    ticks = [tick.get_text() for tick in drawn(draws, found).axes[1].get_yticklabels()]
    assert [tick.split("\n")[1] for tick in ticks] == ["(predicted)", "(true)"]
    ticks = [tick.get_text() for tick in drawn(draws, found | {"label": 0}).axes[1].get_yticklabels()]
    assert ticks[0] == "normal\n(predicted, true)"


def test_of_many_classes_the_most_probable_and_the_true_one_are_drawn():
    draws, found = case(num_classes=30)
    order = np.argsort(found["probs"])
    worst = int(order[0])
    figure = drawn(draws, found | dict(label=worst, label_name="x", correct=False))
    ticks = [tick.get_text().split("\n")[0] for tick in figure.axes[1].get_yticklabels()]
    assert ticks == [f"class {k}" for k in [*order[:-10:-1], worst]]
    assert any("20 less probable classes are left out" in text for text in texts(figure))


def test_one_draw_claims_no_doubt_about_the_weights():
    draws, found = case(count=1)
    figure = drawn(draws, found)
    words = " ".join(texts(figure))
    assert "epistemic not known from one draw" in words
    assert "±" not in words
    assert figure.legends == []


@pytest.mark.parametrize("shape", [(8, 8), (12, 6, 3), (5, 40), (1, 1)])
def test_pictures_of_any_shape_are_drawn_and_equal_each_time(shape, tmp_path):
    draws, found = case(image="/a/$x_1$ [b].png", **REFERRED, **WRONG)
    for name in ("a.png", "b.png"):
        style.save(drawn(draws, found, shape), tmp_path / name, dpi=40)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    figure = drawn(draws, found, shape)
    assert figure.axes[0].get_title(loc="left") == "$x_1$ [b].png"
    figure.canvas.draw()
    width, height = figure.bbox.size
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
