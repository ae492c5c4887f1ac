"""Eight fake CPU devices for every test; sharded programs then run as they would on eight accelerators."""

import jax

jax.config.update("jax_num_cpu_devices", 8)
