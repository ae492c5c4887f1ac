"""Eight fake CPU devices for every test; sharded programs then run as they would on eight accelerators."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="module")
def quick_compile():
    """For modules that compile longer than they run: leave most optimisations out."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
