"""Cold posteriors: how predictions change with the temperature of the posterior.

Every method samples or fits p(w | D)^(1/T), T from 0.01 to 3; T = 1 is Bayes' rule. Two problems:
handwritten digits with the small convolutional network, and 1,000 chest X-rays at 28x28 with LeNet-5. If
colder is better for HMC, which does nothing but sample, then prior or likelihood are at fault; if it is for
VI or SGHMC alone, it is the approximation (Wenzel et al., arXiv:2002.02405; Izmailov et al.,
arXiv:2104.14421). No augmentation, which by itself makes a cold posterior look better. HMC's trajectory and
steps are in widths of the tempered prior. The colder, the worse chains mix: where R-hat is far from 1 each
has stayed at the mode where it began, and the row tells of an ensemble of modes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bnn_jax import style
from bnn_jax.report import curves
from bnn_jax.settings import Config
from bnn_jax.study import Overview, Study, run

TEMPERATURES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
SEEDS = range(2)
_CHAINS = dict(num_chains=2, num_warmup=60, block_size=20)
DATA = {
    "digits": (
        dict(dataset="digits", net="digits", steps=1500, learning_rate=1e-2),
        {
            "HMC": dict(method="hmc", num_draws=100, trajectory_length=0.4, **_CHAINS),
            "SGHMC": dict(method="sghmc(step_size=0.01)", num_draws=200, thin=20, **_CHAINS),
            "VI": dict(method="vi", steps=5000, learning_rate=5e-3, beta_warmup=500),
        },
    ),
    "pneumonia": (
        dict(
            dataset="medmnist",
            path=Path("pneumoniamnist.npz"),
            net="lenet",
            limit=1000,
            steps=1000,
            learning_rate=3e-3,
        ),
        {
            "SGHMC": dict(method="sghmc(step_size=0.003)", num_draws=200, thin=20, **_CHAINS),
            "VI": dict(method="vi", steps=4000, beta_warmup=400),
        },
    ),
}
SCORES = (("nll", "NLL, nats"), ("accuracy", "accuracy"), ("ece", "ECE"))


def label(data: str, method: str, temperature: float) -> str:
    """Of a run."""
    return f"{data}, {method}, T = {temperature:g}"


RUNS = {
    label(data, method, temperature): [
        Config(**common | how, temperature=temperature, seed=seed, eval_every=1000) for seed in SEEDS
    ]
    for data, (common, methods) in DATA.items()
    for method, how in methods.items()
    for temperature in TEMPERATURES
}


def draw(recorded: Mapping[str, Any], pictures: Path) -> list[str]:
    """Scores over temperatures, one picture a data set; lines of the page."""
    found = ["## Scores by temperature", ""]
    for data, (_, methods) in DATA.items():
        lines: dict[str, dict[str, curves.Line]] = {title: {} for _, title in SCORES}
        for method in methods:
            known = [t for t in TEMPERATURES if label(data, method, t) in recorded]
            rows = [recorded[label(data, method, t)]["runs"] for t in known]
            for key, title in SCORES:
                values = [np.array([row[key] for row in own]) for own in rows]
                if values:
                    ends = ([f(v) for v in values] for f in (np.mean, np.min, np.max))
                    lines[title][method] = curves.Line(known, *ends)
        if any(lines.values()):
            figure = curves.curves(
                lines, "temperature", "on the test images", f"{data}: cold posteriors", log_x=True
            )
            style.save(figure, pictures / f"{data}.png")
            found += [f"![{data}: NLL, accuracy and ECE against the temperature](cold/{data}.png)", ""]
    return [*found, "Bands span the seeds.", ""]


STUDY = Study(
    script=Path(__file__),
    text=__doc__,
    runs=RUNS,
    columns=("nll", "accuracy", "ece", "rhat_function_median", "seconds"),
    overview=Overview("digits", "nll", None, "digits, VI, T = 1", ("HMC", "digits, HMC, T = 1")),
    evaluate={"num_draws": 200, "num_bootstrap": 200},
    quick=dict(steps=100, num_warmup=10, num_draws=10, thin=1, block_size=10, trajectory_length=0.02),
    quick_labels=["digits, HMC, T = 0.1", "digits, HMC, T = 1", "digits, VI, T = 0.1", "digits, VI, T = 1"],
    quick_evaluate={"num_draws": 10, "num_bootstrap": 20},
    draw=draw,
)

if __name__ == "__main__":
    run(STUDY)
