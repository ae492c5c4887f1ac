"""One image, what the model says and how sure it is: a picture, and the rows of a table.

A record is a flat dict, one line of `predictions.json`; `scripts/predict.py` documents its keys. Nothing is
told by colour alone. Shapes: D draws, K classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from bnn_jax import style

_BLUE, _ORANGE, _DARK = "#0072B2", "#D55E00", "#222222"
_MOST = 10  # classes drawn
_HALF = 0.28  # half the height of a class's strip of dots
_LEVEL = (0.025, 0.975)  # ends of the interval over draws


def rows(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The header and a row an image. Columns about referral and truth are there if any record knows them."""
    referred = any(record["refer"] is not None for record in records)
    known = any(record["correct"] is not None for record in records)
    header = ["image", "predicted", "probability", "entropy", "alea-\ntoric", "epi-\nstemic"]
    table = [header + ["refer"] * referred + ["answer"] * known]
    for record in records:
        row = [style.shorten(Path(record["image"]).name, 17), style.shorten(record["predicted_name"], 12)]
        row.append(_with_spread(record, record["predicted"]))
        row += [f"{record[key]:.3f}" for key in ("total", "aleatoric", "epistemic")]
        row += [_word(record["refer"], "yes", "no")] * referred
        table.append(row + [_word(record["correct"], "right", "wrong")] * known)
    return table


def console(records: Sequence[Mapping[str, Any]]) -> Table:
    """`rows` to print with rich in 80 columns."""
    header, *body = rows(records)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    for i, title in enumerate(header):
        words = title in ("image", "predicted", "refer", "answer")
        table.add_column(Text(title), justify="left" if words else "right", no_wrap=True, vertical="bottom")
        table.columns[i].min_width = len(max(title.split("\n"), key=len))
    for row in body:
        table.add_row(*map(Text, row))
    return table


@style.styled
def figure(image: np.ndarray, draws: np.ndarray, record: Mapping[str, Any]) -> Figure:
    """The image beside the probability of each class under every draw, above the split of the entropy.

    Of more than ten classes the ten most probable are drawn, the true class always among them.

    Args:
        image: (H, W) or (H, W, 3) in [0, 1], as the network sees it.
        draws: (D, K) probabilities, a row a draw of the weights.
        record: see `scripts/predict.py`.
    """
    shown = _classes(record)
    strips = max(0.44 * len(shown) + 0.75, 1.75)  # inches
    canvas = style.canvas(9.5, strips + 2.45, _headline(record))
    grid = canvas.add_gridspec(2, 2, width_ratios=(1, 2.15), height_ratios=(strips, 0.95))
    picture = canvas.add_subplot(grid[:, 0])
    picture.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    picture.set_title(style.shorten(Path(record["image"]).name, 34), color="#444444")
    picture.set(xticks=(), yticks=())
    picture.grid(False)
    picture.spines[:].set_visible(False)
    told = f"{image.shape[1]} x {image.shape[0]} pixels, as the network sees it"
    picture.set_xlabel(told, color="#444444", loc="left")
    picture.set_anchor("N")
    top, bottom = canvas.add_subplot(grid[0, 1]), canvas.add_subplot(grid[1, 1])
    _strips(top, draws, record, shown)
    _entropy(bottom, record)
    if handles := _legend(top, record, len(draws)):
        canvas.legend(handles=handles, loc="outside lower right", ncols=4)
    canvas.get_layout_engine().set(h_pad=0.06, w_pad=0.08, hspace=0.04)
    return canvas


def _headline(record):
    said = f"probability {_with_spread(record, record['predicted'])}"
    lines = [f"Predicted: {style.shorten(record['predicted_name'], 40)}, {said}"]
    if record["refer"] is not None:
        side = "above" if record["refer"] else "not above"
        limit = f"entropy {record['total']:.3f} nats, {side} {record['referral_uncertainty']:.3f}"
        lines.append(f"{'Refer to a doctor' if record['refer'] else 'No referral'}: {limit}")
    if record["label"] is not None:
        verdict = _word(record["correct"], "right", "WRONG")
        lines.append(f"True class: {style.shorten(record['label_name'], 40)}. The prediction is {verdict}.")
    return "\n".join(lines)


def _classes(record):
    """The classes that are drawn: in their own order, or if there are many, the most probable first."""
    probs = np.asarray(record["probs"])
    if len(probs) <= _MOST:
        return list(range(len(probs)))
    shown = np.argsort(-probs, kind="stable")[:_MOST].tolist()
    for k in (record["predicted"], record["label"]):
        if k is not None and k not in shown:
            shown[-1] = k
    return shown


def _strips(axes, draws, record, shown):
    """A row a class: dots of the draws, their interval, their mean, the number, the threshold."""
    count, random = len(draws), np.random.default_rng(0)
    height = random.uniform(-_HALF, _HALF, count) if count > 1 else np.zeros(1)
    for y, k in enumerate(shown):
        tint = _BLUE if k == record["predicted"] else "#777777"
        axes.scatter(draws[:, k], y + height, s=10, color=tint, alpha=0.35, lw=0, clip_on=False)
        if count > 1:
            low, high = np.quantile(draws[:, k], _LEVEL)
            axes.plot([low, high], [y, y], color=tint, lw=3.5, solid_capstyle="butt", clip_on=False)
        mean = dict(marker="o", ms=8, color="white", mec=tint, mew=2, zorder=4, clip_on=False)
        axes.plot(record["probs"][k], y, **mean)
        text = dict(transform=axes.get_yaxis_transform(), va="center", color=_DARK, clip_on=False)
        weight = "bold" if k == record["predicted"] else "normal"
        axes.text(1.03, y, _with_spread(record, k), fontweight=weight, **text)
        if k == 1 and record["threshold"] is not None:
            cut = record["threshold"]
            axes.plot([cut, cut], [y - 0.45, y + 0.45], color=_ORANGE, lw=1.8, ls="--", zorder=3)
    names = [_tick(record, k) for k in shown]
    axes.set_yticks(range(len(shown)), names)
    for label, k in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_fontweight("bold" if k == record["predicted"] else "normal")
    axes.set(xlim=(0, 1), ylim=(len(shown) - 0.45, -0.55))
    hidden = len(record["probs"]) - len(shown)
    axes.set_xlabel("probability" + f" ({hidden} less probable classes are left out)" * (hidden > 0))
    said = f"a dot for each of {count} draws of the weights" if count > 1 else "a single draw of the weights"
    axes.set_title(f"Classes: {said}")
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def _tick(record, k):
    marks = [word for word, which in (("predicted", "predicted"), ("true", "label")) if record[which] == k]
    return style.shorten(record["class_names"][k], 16) + (f"\n({', '.join(marks)})" if marks else "")


def _entropy(axes, record):
    """One bar: what would remain with known weights, and the doubt about the weights."""
    most = float(np.log(len(record["probs"])))
    aleatoric, epistemic = record["aleatoric"], record["epistemic"]
    axes.barh(0, aleatoric, 0.6, color="#a9c7dc", ec=_DARK, lw=0.8)
    axes.barh(0, epistemic, 0.6, aleatoric, color="#f3c9ae", ec=_DARK, lw=0.8, hatch="////")
    limit = record["referral_uncertainty"]
    if limit is not None:
        axes.plot([limit, limit], [-0.5, 0.5], color=_DARK, lw=1.8, ls=":", clip_on=False)
    split = f"= {aleatoric:.3f} aleatoric (plain) + {epistemic:.3f} epistemic (hatched)"
    if record["num_draws"] == 1:
        split = "aleatoric; epistemic not known from one draw"
    axes.set_title(f"Entropy: {record['total']:.3f} nats {split}", fontsize=10)
    axes.set(xlim=(0, most), ylim=(-0.6, 0.6), yticks=())
    axes.set_xlabel(f"nats, from 0 (certain) to {most:.2f} (all {len(record['probs'])} classes alike)")
    axes.grid(False, axis="y")


def _legend(axes, record, count):
    """What every mark means."""
    grey, handles = "#777777", []
    if count > 1:
        handles += axes.plot([], [], lw=3.5, color=grey, label="95 % of the draws")
        handles += axes.plot([], [], ls="", marker="o", ms=8, color="white", mec=grey, mew=2, label="mean")
    if record["threshold"] is not None:
        told = f"decision threshold {record['threshold']:.3f}"
        handles += axes.plot([], [], color=_ORANGE, lw=1.8, ls="--", label=told)
    if record["referral_uncertainty"] is not None:
        told = f"referral above {record['referral_uncertainty']:.3f} nats"
        handles += axes.plot([], [], color=_DARK, lw=1.8, ls=":", label=told)
    return handles


def _with_spread(record, k):
    spread = f" ± {record['probs_std'][k]:.3f}" if record["num_draws"] > 1 else ""
    return f"{record['probs'][k]:.3f}{spread}"


def _word(value, true, false):
    return "-" if value is None else true if value else false
