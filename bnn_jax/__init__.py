"""Bayesian convolutional networks in JAX and Flax, and how far each posterior is from HMC's.

Data flows one way:
`data -> (net, prior, likelihood) -> infer -> draws -> predict -> metrics, compare -> report`.
"""

__version__ = "0.1.0"
