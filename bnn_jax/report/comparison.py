"""The comparison's report: every picture as a PNG of its own, and all of them in one HTML file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bnn_jax import diagnostics, metrics, style, weight_space
from bnn_jax.report import entropy, html, plots, tables


class Evidence(NamedTuple):
    """What the pictures are drawn from; sound chains only."""

    targets: np.ndarray  # (T,) labels, or targets of a regression
    images: np.ndarray | None  # (T, H, W) or (T, H, W, 3) in [0, 1]
    values: Mapping[str, np.ndarray]  # method -> (C, D, T, K) probabilities, or (C, D, T, 1) predicted means
    weights: Mapping[str, Mapping[str, np.ndarray]]  # method -> leaf name -> (C, D, ...)
    num_classes: int  # 0 for regression


def write(out: Path, results: Mapping[str, Any], evidence: Evidence) -> None:
    """Write `report.html` and its PNGs to the folder `out`.

    Args:
        results: as `tables.rows` takes it.
        evidence: predictions and weights of every method.
    """
    sections = [
        html.Section(
            "Result",
            "The same network, prior, likelihood, training and test data under every method. Agreement is "
            "the share of test points with the same predicted class; total variation is half the summed "
            "difference of the predicted probabilities, of a regression half the integrated difference of "
            "the predictive densities, averaged over the test points.",
            table=tables.rows(results),
            notes=tables.notes(results),
        )
    ]
    if results["reference"] is not None:
        sections.append(
            html.Section(
                f"More distances to {results['reference']}",
                "KL is the mean of both directions. W2 is the 2-Wasserstein distance between the draws' "
                "values at a test point, so it sees whether the draws themselves are as spread. The gaps are "
                "signed: above 0 a method is less sure, or worse calibrated, than the reference.",
                table=tables.distances(results),
            )
        )
    for heading, text, figures in _pictures(results, evidence):
        for name, _, figure in figures:
            style.save(figure, out / f"{name}.png")
        shown = [(caption, (out / f"{name}.png").read_bytes()) for name, caption, _ in figures]
        sections.append(html.Section(heading, text, shown))
    if results["weights"].get("methods"):
        sections.append(
            html.Section(
                "Weights, layer by layer",
                "After alignment: how far the means are apart, root mean square over the weights of a layer "
                "in standard deviations of the reference, the median ratio of these deviations, and the W2 "
                "distance of single weights. Weights that hardly matter may differ at no cost.",
                table=tables.weights(results),
            )
        )
    if results["diagnostics"]:
        sections.append(
            html.Section(
                "Chains", "One row a chain of every Monte Carlo method.", table=tables.chains(results)
            )
        )
    record = {key: results[key] for key in ("data", "config", "environment")}
    sections.append(html.Section("Settings", "What was run, and where.", table=tables.settings(record)))
    data = results["data"]
    lead = (
        f"{data['description']}: {data['num_train']} training and {data['num_test']} test examples, "
        f"{data['num_weights']} weights."
    )
    html.write(out / "report.html", "How far is each posterior from HMC's?", lead, sections)


def _pictures(results, evidence):
    """(heading, text, [(file name, caption, figure)]) of every section that has something to show."""
    reference = results["reference"]
    if not evidence.values:  # no method has a sound chain: the table says so, there is nothing to draw
        return
    others = [name for name in evidence.values if name != reference]
    several = lambda name: np.prod(evidence.values[name].shape[:2]) > 1
    other = next(iter(sorted(others, key=lambda name: (name != "vi", not several(name)))), None)
    pair = other is not None and reference is not None
    if pair:
        yield (
            "Distance to the reference",
            "The band is the noise floor: what two chains of the reference differ by. A method inside it "
            "cannot be told from the reference with these draws.",
            [("distances", f"Distance to {reference} of every method.", plots.distances(results))],
        )
    if evidence.num_classes:
        yield from _of_classes(evidence, other if pair else None, reference)
    if pair and several(other):
        yield (
            "Weights",
            results["weights"]["note"]
            or "All draws with their hidden units in the order of the reference's.",
            [
                (
                    "weight_std",
                    f"Posterior standard deviation of every weight, {other} against {reference}.",
                    plots.weight_std(
                        _std(evidence.weights[other]), _std(evidence.weights[reference]), other, reference
                    ),
                )
            ],
        )
    if reference is not None:
        yield _chains(reference, evidence)


def _of_classes(evidence, other, reference):
    """Sections that a classification has; `other` is compared with the reference, None for none."""
    labels = evidence.targets
    mean = {name: p.mean((0, 1)) for name, p in evidence.values.items()}
    yield (
        "Calibration",
        "Above the diagonal a method is less sure than it is right, below it is surer.",
        [("reliability", "Accuracy against confidence.", plots.reliability(mean, labels))],
    )
    if other is not None:
        a, b = mean[other], mean[reference]
        figures = [
            (
                "probabilities",
                f"Probability of the true class of every test image, {other} against {reference}.",
                plots.probability_scatter(a, b, labels, other, reference),
            )
        ]
        if evidence.images is not None:
            figures.append(
                (
                    "disagreement",
                    f"The images on which {other} and {reference} disagree most, with both distributions.",
                    plots.disagreement(evidence.images, a, b, labels, other, reference),
                )
            )
        yield "Image by image", "", figures
    split = {name: metrics.uncertainty(p.reshape(-1, *p.shape[2:])) for name, p in evidence.values.items()}
    yield (
        "What the model does not know",
        "The entropy of a prediction is the sum of an aleatoric part, which remains if the weights are "
        "known, and an epistemic part, the disagreement of the draws.",
        [
            (
                "entropy",
                "Aleatoric and epistemic entropy of right and wrong predictions.",
                entropy.split(
                    {name: parts[1] for name, parts in split.items()},
                    {name: parts[2] for name, parts in split.items()},
                    {name: mean[name].argmax(-1) == labels for name in mean},
                ),
            )
        ],
    )


def _chains(reference, evidence):
    values, weights = evidence.values[reference], evidence.weights[reference]
    if evidence.num_classes:
        epistemic = metrics.uncertainty(values.reshape(-1, *values.shape[2:]))[2]
        shown = lambda t: np.log(np.maximum(values[:, :, t, evidence.targets[t]], metrics.TINY))
        what, unit = "Log probability of the true class", "log probability, nats"
        function = diagnostics.function_values(values)
    else:
        epistemic, function = values.std((0, 1))[:, 0], values
        shown = lambda t: values[:, :, t, 0]
        what, unit = "Predicted mean", "predicted mean"
    uncertain = np.argsort(-epistemic)[:4]
    functions = {
        f"test {'image' if evidence.images is not None else 'point'} {t}": shown(t) for t in uncertain
    }
    flat = {name: leaf.reshape(*leaf.shape[:2], -1) for name, leaf in weights.items()}
    singles = {f"{name}[0]": leaf[:, :, 0] for name, leaf in flat.items()}
    rhat_function = diagnostics.rhat(function).ravel()
    rhat_weight = diagnostics.rhat(np.concatenate(list(flat.values()), -1))
    return (
        "Do the chains agree?",
        "Function values decide; weights of a network may differ where its function does not.",
        [
            (
                "rhat",
                f"R-hat of {reference}'s function values and weights.",
                plots.rhat_histograms(rhat_function, rhat_weight),
            ),
            (
                "trace_function",
                f"{what}, on the four test points of largest epistemic uncertainty.",
                plots.traces(functions, unit),
            ),
            ("trace_weights", "The first weight of every layer.", plots.traces(singles, "weight")),
        ],
    )


def _std(leaves):
    flat = {name: leaf.reshape(leaf.shape[0] * leaf.shape[1], -1) for name, leaf in leaves.items()}
    return {name: weight_space.weight_moments(leaf)[1] for name, leaf in flat.items()}
