"""Networks, one a file, each `build(num_outputs) -> linen module`, plain and deterministic.

Inputs are (B, H, W, C) or (B, F) floats, outputs (B, num_outputs). Nothing here knows that it is
Bayesian. There is no batch normalisation: it makes the likelihood of an example depend on its batch.
"""
