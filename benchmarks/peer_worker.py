"""One contestant of `peers.py` in a process of its own, on one core or a GPU: commands in, seconds out.

    python benchmarks/peer_worker.py FILE NAME DEVICE     started by peers.py, a JSON line a command

    {"do": "start", "setting": {...}}   imports, then timed: builds the contestant and takes one step
    {"do": "kl"}                        its own KL term, and the closed form at the same posterior, in nats
    {"do": "train", "count": 20}        so many steps, timed
    {"do": "predict", "count": 30}      the mean prediction of so many draws for all test images, timed

Every answer is a JSON line: seconds, or {"missing": MODULE}, or {"error": MESSAGE}. Seconds are CPU time
of this process, all threads (`time.process_time`), with DEVICE "gpu" those of the wall. FILE has
`CONTESTANTS`: name -> (modules that it needs, build). build(problem) gives the functions train(count),
which waits for its last step, predict(count) -> (T, K) and, if there is a KL term, kl() -> (value in nats,
means, standard deviations), else None. Nothing of this project or of JAX is imported here, so that an
interpreter with a peer and NumPy is enough.
"""

import importlib
import importlib.metadata
import json
import os
import runpy
import sys
import time
import warnings
from typing import NamedTuple

ONE_THREAD = {
    **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM")},
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "NPROC": "1",  # XLA's thread pool, where the affinity below cannot be set
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
}


class Problem(NamedTuple):
    """The data and settings that all contestants share."""

    x: object  # (N, 28, 28, 1) float32
    y: object  # (N,) int32
    x_test: object  # (T, 28, 28, 1)
    y_test: object
    batch_size: int
    learning_rate: float
    std: float  # of every weight's posterior at the start; the prior is N(0, 1)
    device: str  # "cpu" or "gpu"


def one_thread() -> None:
    """Before NumPy, JAX or torch start their threads: XLA has as many as there are cores it may use."""
    os.environ.update(ONE_THREAD)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def problem(
    num_train: int, num_test: int, batch_size: int, learning_rate: float, std: float, device: str
) -> Problem:
    """Ten noisy patterns: the same numbers in every process."""
    import numpy as np

    rng = np.random.default_rng(0)
    patterns = rng.standard_normal((10, 28, 28, 1))

    def draw(count):
        y = rng.integers(0, 10, count).astype(np.int32)
        return (0.5 * patterns[y] + rng.standard_normal((count, 28, 28, 1))).astype(np.float32), y

    return Problem(*draw(num_train), *draw(num_test), batch_size, learning_rate, std, device)


def closed_form(means, stds) -> float:
    """KL(q || N(0, 1)) of independent normals, summed over weights, in nats."""
    import numpy as np

    m, s = (np.concatenate([np.ravel(a) for a in arrays]).astype(np.float64) for arrays in (means, stds))
    return float(np.sum((s**2 + m**2 - 1) / 2 - np.log(s)))


def versions(modules: tuple[str, ...]) -> dict[str, str]:
    """Of the installed packages that the modules belong to."""
    owners = importlib.metadata.packages_distributions()
    names = {name for module in modules for name in owners.get(module.partition(".")[0], ())}
    return {name: importlib.metadata.version(name) for name in sorted(names)}


def serve(file: str, name: str, device: str, receive, send) -> None:
    """Answer the commands of `receive`, an iterable of lines, by `send`, a function of a dictionary."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    for line in receive:
        command = json.loads(line)
        if command["do"] == "start":
            try:
                modules, build = runpy.run_path(file)["CONTESTANTS"][name]
                for module in modules:
                    importlib.import_module(module)
            except ModuleNotFoundError as error:
                send({"missing": error.name})
                return
            given = problem(**command["setting"], device=device)
            begin = clock()
            train, predict, kl = build(given)
            train(1)
            send({"seconds": clock() - begin, "versions": versions(modules)})
        elif command["do"] == "kl":
            value, means, stds = kl() if kl else (None, None, None)
            send({"kl": value, "closed_form": closed_form(means, stds) if kl else None})
        elif command["do"] == "train":
            begin = clock()
            train(command["count"])
            send({"seconds": clock() - begin})
        else:
            begin = clock()
            probs = predict(command["count"])
            seconds = clock() - begin
            send({"seconds": seconds, "accuracy": accuracy(probs, given.y_test)})


def accuracy(probs, labels) -> float:
    """Of mean predictions, which must be probabilities of every image."""
    if probs.shape != (len(labels), 10) or not (abs(probs.sum(1) - 1) < 1e-3).all():
        raise ValueError(f"the predictions, {probs.shape}, are not probabilities of {len(labels)} images")
    return float((probs.argmax(1) == labels).mean())


def main(file: str, name: str, device: str) -> None:
    """Serve on standard input and output, whatever a library prints going to standard error."""
    if device == "cpu":
        one_thread()
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if path != here]  # its posteriors.py would hide the library
    warnings.filterwarnings("ignore")
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(answer):
        print(json.dumps(answer), file=answers, flush=True)

    try:
        serve(file, name, device, sys.stdin, send)
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")
        send({"error": f"{type(error).__name__}: {first}"})


if __name__ == "__main__":
    main(*sys.argv[1:])
