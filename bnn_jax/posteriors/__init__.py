"""Variational families q_phi(w), one a file, each `build(...) -> Posterior`."""
