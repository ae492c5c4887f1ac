"""Eight fake CPU devices for every test; sharded programs then run as they would on eight accelerators."""

import os

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session", autouse=True)
def own_programs(tmp_path_factory):
    """Scripts that tests start keep compiled programs for each other, not in the user's cache folder."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="module")
def quick_compile():
    """For modules that compile longer than they run: leave most optimisations out."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
