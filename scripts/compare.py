"""One network, prior and data under several inference methods: see `bnn_jax/commands/compare.py`."""

from bnn_jax import cli
from bnn_jax.commands import compare

if __name__ == "__main__":
    cli.run(compare.main, compare.Config, compare.__doc__, cpu_devices=lambda config: config.num_chains)
