"""The weight of the KL: how wide a posterior grows in training.

A Bayesian convolutional network on toy data, standardised: 1-D signals of three shapes and 2-D gratings of
four orientations, both noisy. The objective is E_q log p(D | w) - beta KL(q || p) with beta from 0 (no prior:
the posterior's width is left to the data, which want it to be 0) to 10; beta = 1 is the ELBO. The mean
standard deviation of every layer's posterior is recorded after every epoch. Beside VI stand the network of
maximum posterior density (MAP) and HMC, which samples the posterior that beta = 1 approximates.

What the posterior adds here, and what not: HMC is more accurate than MAP on both data sets and has the lowest
NLL, so the posterior itself is worth having. Mean-field VI gets no part of that at beta = 1: its weights are
independent, so it widens them until the network is less sure than it is right. A KL weight below 1, a cold
posterior, hides the fault of the family, with NLL and ECE better than at 1 and in two dimensions better
than MAP's; above 1 the data lose, at 10 in two dimensions completely. Without the KL the widths shrink below
where they started, in every layer and epoch. The convolution that sees most weights for its data ends widest
relative to the prior, and after 60 epochs its width still grows: reports of posterior widths need the
number of epochs beside them. Two chains of HMC have not met in two dimensions (R-hat).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bnn_jax import runs, style, training
from bnn_jax.report import curves, study_page
from bnn_jax.settings import Config
from bnn_jax.study import Load, Overview, Study, run

BETAS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
SEEDS = range(3)
_COMMON = dict(epochs=60, batch_size=64, learning_rate=1e-2, schedule="constant", prior="isotropic")
_DATA = {
    "1-D": dict(dataset="signals", net="convnet(widths=(8, 16))"),
    "2-D": dict(dataset="gratings", net="convnet(widths=(8, 16))"),
}
_HMC = {
    "1-D": dict(method="hmc", num_warmup=100, num_draws=200, block_size=100),
    # A gradient costs several times as much: an eighth of the default trajectory, and fewer draws.
    "2-D": dict(method="hmc", num_warmup=50, num_draws=100, block_size=50, trajectory_length=0.2),
}


def label(data: str, beta: float) -> str:
    """Of a row of the table."""
    return f"{data}, VI, beta {beta:g}"


RUNS = {}
for name, data in _DATA.items():
    configs = {f"{name}, MAP": dict(method="map")}
    configs |= {label(name, beta): dict(method="vi", beta=beta, record_std=True) for beta in BETAS}
    configs |= {f"{name}, HMC": _HMC[name]}
    for title, how in configs.items():
        RUNS[title] = [Config(seed=seed, **_COMMON | data | how) for seed in SEEDS]


def analyse(folders: Mapping[str, Sequence[Path]], pictures: Path, quick: bool, load: Load) -> dict[str, Any]:
    """Standard deviations by data set, layer and beta, and a picture a data set."""
    found: dict[str, Any] = {}
    for name in _DATA:
        there = [beta for beta in BETAS if label(name, beta) in folders]
        histories = {
            beta: [runs.read_json(folder / training.HISTORY) for folder in folders[label(name, beta)]]
            for beta in there
        }
        row = histories[there[0]][0][0]
        layers = [key for key in row if key.startswith("std_") and key.endswith("_kernel")]
        panels = {
            title_of(layer): {
                f"beta {beta:g}": curves.over_runs(of_beta, layer) for beta, of_beta in histories.items()
            }
            for layer in layers
        }
        told = dict(ordered=True, log_y=True, headline=f"{name}: width of the posterior by weight of the KL")
        figure = curves.curves(panels, "epoch", "mean posterior std", **told)
        style.save(figure, pictures / f"std_{name.lower()}.png")
        found[name] = {
            title: {beta.removeprefix("beta "): float(line.y[-1]) for beta, line in lines.items()}
            for title, lines in panels.items()
        }
    return found


def title_of(layer: str) -> str:
    """`std_Conv_0_kernel` -> `Conv_0`."""
    return layer.removeprefix("std_").removesuffix("_kernel")


def sections(found: dict[str, Any]) -> list[str]:
    """A table and a picture a data set."""
    lines = ["## How wide the posterior grows", ""]
    for name, layers in found.items():
        rows = [["beta", *layers]]
        betas = next(iter(layers.values()))
        rows += [[beta, *(f"{std[beta]:.3f}" for std in layers.values())] for beta in betas]
        picture = f"kl_weight/std_{name.lower()}.png"
        lines += [
            f"![Posterior standard deviations by epoch, {name}]({picture})",
            "",
            *study_page.table(rows),
            "",
        ]
    return [
        *lines,
        "Mean standard deviation of the weights of a layer (kernels) after the last epoch, over the seeds;",
        "in the pictures the band spans the seeds. The prior's is 1.",
        "",
    ]


STUDY = Study(
    script=Path(__file__),
    text=__doc__,
    runs=RUNS,
    columns=("accuracy", "nll", "ece", "brier", "rhat_function_median", "seconds"),
    overview=Overview("gratings", "nll", "2-D, MAP", label("2-D", 1), ("HMC", "2-D, HMC")),
    evaluate={"num_draws": 100, "num_bootstrap": 200},
    quick=dict(epochs=3, limit=400, num_warmup=20, num_draws=20, block_size=20, trajectory_length=0.05),
    quick_evaluate={"num_draws": 10, "num_bootstrap": 20},
    quick_labels=["1-D, MAP", label("1-D", 1), label("2-D", 0), label("2-D", 10), "2-D, HMC"],
    analyse=analyse,
    sections=sections,
)

if __name__ == "__main__":
    run(STUDY)
