"""Inference methods, one a file, each `build(...) -> Algorithm(init, step, sample)`.

A method receives what it needs (a log joint, an ELBO, a prior's scale) and imports no network, prior or
family. Ensembles, seeds and chains are `vmap` or sharding of the same trio: no method knows of them.
"""
