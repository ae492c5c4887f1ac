"""Judge a trained run on its test data: see `bnn_jax/commands/evaluate.py`."""

from bnn_jax import cli
from bnn_jax.commands import evaluate

if __name__ == "__main__":
    cli.run(evaluate.main, evaluate.Config, evaluate.__doc__)
