"""Chest X-rays of children, pneumonia or not: the official test part, and a random split of all images.

5,856 grey images of 224 x 224 pixels (Kermany et al., doi:10.1016/j.cell.2018.02.010), here resized to 64
x 64, which two CPU cores train on in minutes; LeNet-5 with the prior N(0, 1) under random rotation, shift,
zoom, brightness and contrast. "official": the 624 official test images; a tenth of all others is the
validation part, all images of a patient on one side. "random": 70 : 15 : 15 without regard to patients, as
in the study that is listed (5,639 images of 256 x 256 pixels, five convolution blocks). A patient's images
then lie in several parts, and the score is that of known patients: compare the two. Recall, specificity
and precision are those of the threshold whose recall on the validation images is at least 97 %.
"""

from pathlib import Path

from bnn_jax.settings import Config
from bnn_jax.study import Overview, Study, run

_COMMON = dict(
    dataset="folder",
    path=Path("chest_xray_224"),
    image_size=64,
    net="lenet",
    prior="isotropic",
    epochs=25,
    learning_rate=3e-3,
    rotation=10.0,
    shift=0.1,
    zoom=(0.8, 1.2),
    brightness=(0.6, 1.4),
    contrast=(0.5, 1.5),
)
_OFFICIAL = dict(split="given_test", ratios=(9.0, 1.0, 0.0), group_by=r"(person\d+_[a-z]+|IM-\d+)")
_RANDOM = dict(split="random", ratios=(70.0, 15.0, 15.0))
_VI = dict(method="vi", estimator="sampling", beta_warmup=500)
RUNS = {
    "official, MAP": [Config(method="map", **_OFFICIAL, **_COMMON)],
    "official, VI": [Config(**_VI, **_OFFICIAL, **_COMMON)],
    "random, VI": [Config(**_VI, **_RANDOM, **_COMMON)],
}
PUBLISHED = {"random, five blocks at 256 x 256, maximum likelihood": {"accuracy": 0.978, "recall": 0.979}}
STUDY = Study(
    script=Path(__file__),
    text=__doc__,
    runs=RUNS,
    columns=("auroc", "accuracy", "recall", "specificity", "precision", "nll", "ece", "aurc", "seconds"),
    overview=Overview("random split", "accuracy", None, "random, VI", published=next(iter(PUBLISHED))),
    evaluate={"num_draws": 100, "recall": 0.97},
    published=PUBLISHED,
    referral=True,
    quick=dict(epochs=1, limit=300, image_size=32),
    quick_evaluate={"num_draws": 10, "num_bootstrap": 50},
)

if __name__ == "__main__":
    run(STUDY)
