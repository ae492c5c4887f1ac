"""Train one network by one method on one data set: see `bnn_jax/commands/train.py`."""

from bnn_jax import cli
from bnn_jax.commands import train

if __name__ == "__main__":
    cli.run(train.main, train.Config, train.__doc__, cpu_devices=train.cpu_devices, several=True)
