r"""The Gauss-Newton matrix of a network: whole, of its last layer, in Kronecker factors, or its diagonal.

    C = mean_n J_n^T F_n J_n,    J_n = d outputs_n / d w,    F_n = E s s^T,
    s = d log p(y | outputs_n) / d outputs_n

F is the Fisher information of an example's outputs, the expectation over p(y | outputs), which for the
categorical and the Gaussian of known noise is the Hessian itself. C leaves out the second derivative of the
network and is never negative. Kronecker factors of a layer with rows a at T places and gradients g of its
outputs,

    C_kernel ~= (mean_n sum_t a a^T) (x) (mean_n sum_t g g^T / T),

take a and g for independent, as they do places from one another (Martens & Grosse, arXiv:1503.05671; Grosse &
Martens, arXiv:1602.01407); a bias has a whole block, all other weights their diagonal.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnn_jax import ops
from bnn_jax.trees import size
from bnn_jax.types import Likelihood, UserError

FORMS = ("full", "last_layer", "kronecker", "diagonal")
MOST_WEIGHTS = 10_000  # of a whole matrix: 400 MB in float32
Path = tuple[str, ...]


class Spectrum(NamedTuple):
    """C as basis diag(values) basis^T."""

    values: Any  # a pytree of eigenvalues, of the form's own
    basis: Any


class Curvature(NamedTuple):
    """One form of the Gauss-Newton matrix."""

    zeros: Callable  # (params) -> C of no examples
    measure: Callable  # (params, batch) -> C
    spectrum: Callable  # (C, widths: Params) -> Spectrum of S C S, S = diag(widths); one width a leaf
    turn: Callable  # (basis, v like values, params) -> basis v as a pytree like params, 0 where C is not
    covered: Callable  # (params) -> the leaves that C is of, a list


def build(
    form: str, apply: Callable, module: nn.Module, likelihood: Likelihood, layers: Sequence[Path]
) -> Curvature:
    """The form called `form`.

    Args:
        form: one of `FORMS`.
        apply: (params, x) -> outputs.
        module: the same network, for what its layers see.
        layers: paths of the dense and convolutional layers in the order of their calls; see `ops.layers`.

    Raises:
        UserError: an unknown form, a likelihood without Fisher information; when used, more than
            `MOST_WEIGHTS` weights in one matrix, or a layer that has no Kronecker factors.
    """
    if form not in FORMS:
        raise UserError(f"unknown curvature {form!r}: choose from {', '.join(FORMS)}")
    if likelihood.fisher_root is None:
        raise UserError(
            "the curvature needs a likelihood whose Fisher information is known; this one has none"
        )
    if form == "diagonal":
        return _diagonal(apply, likelihood)
    if form == "kronecker":
        return _kronecker(apply, module, likelihood, layers)
    return _whole(apply, likelihood, layers[-1] if form == "last_layer" else ())


def _rows(apply, likelihood, params, own, x, y):
    """F^(1/2)^T J of one example, for the leaves at the numbers `own`: a list of (R, ...)."""
    leaves, structure = jax.tree.flatten(params)

    def outputs(chosen):
        changed = dict(zip(own, chosen, strict=True))
        return apply(
            jax.tree.unflatten(structure, [changed.get(i, a) for i, a in enumerate(leaves)]), x[None]
        )

    found, pull = jax.vjp(outputs, [leaves[i] for i in own])
    return jax.vmap(lambda column: pull(column)[0])(likelihood.fisher_root(found, y[None]))


def _squares(apply, likelihood, params, own, batch):
    """The diagonal of C for the leaves `own`, one example after the other: rows of all would not fit."""

    def add(total, example):
        rows = _rows(apply, likelihood, params, own, *example)
        return [t + jnp.sum(row**2, 0) for t, row in zip(total, rows, strict=True)], None

    leaves = jax.tree.leaves(params)
    total, _ = jax.lax.scan(add, [jnp.zeros_like(leaves[i]) for i in own], tuple(batch))
    return [t / len(batch.x) for t in total]


def _diagonal(apply, likelihood):
    everything = lambda params: range(len(jax.tree.leaves(params)))
    return Curvature(
        zeros=lambda params: [jnp.zeros_like(leaf) for leaf in jax.tree.leaves(params)],
        measure=lambda params, batch: _squares(apply, likelihood, params, everything(params), batch),
        spectrum=lambda c, widths: Spectrum(
            [a * w**2 for a, w in zip(c, jax.tree.leaves(widths), strict=True)], ()
        ),
        turn=lambda basis, v, params: jax.tree.unflatten(jax.tree.structure(params), v),
        covered=jax.tree.leaves,
    )


def _whole(apply, likelihood, path):
    """One matrix over the weights at `path`, () for all."""

    def own(params):
        inside = jax.tree.leaves(jax.tree.map(lambda leaf: leaf is not None, params))
        if path:
            keys = [k for k, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
            inside = [tuple(getattr(p, "key", None) for p in k[: len(path)]) == path for k in keys]
        return [i for i, chosen in enumerate(inside) if chosen]

    def covered(params):
        leaves = jax.tree.leaves(params)
        return [leaves[i] for i in own(params)]

    def zeros(params):
        count = size(covered(params))
        if count > MOST_WEIGHTS:
            raise UserError(
                f"a whole curvature matrix of {count:,} weights is too large (at most {MOST_WEIGHTS:,}): "
                "choose kronecker or diagonal"
            )
        return jnp.zeros((count, count))

    def measure(params, batch):
        rows = jax.vmap(lambda x, y: _rows(apply, likelihood, params, own(params), x, y))(*batch)
        flat = jnp.concatenate([r.reshape(r.shape[0] * r.shape[1], -1) for r in rows], -1)
        return flat.T @ flat / len(batch.x)

    def spectrum(c, widths):
        s = jnp.concatenate([w.ravel() for w in covered(widths)])
        return Spectrum(*_eigen(c * s[:, None] * s))

    def turn(basis, v, params):
        leaves, structure = jax.tree.flatten(params)
        moved = basis @ v
        done = 0
        away = [jnp.zeros_like(leaf) for leaf in leaves]
        for i in own(params):
            away[i] = moved[done : done + leaves[i].size].reshape(leaves[i].shape)
            done += leaves[i].size
        return jax.tree.unflatten(structure, away)

    return Curvature(zeros, measure, spectrum, turn, covered)


def _kronecker(apply, module, likelihood, layers):
    """A list with an entry a leaf: (A, G) of a kernel, (B,) of a bias, the diagonal of any other."""

    def kinds(params):
        leaves = [
            tuple(str(getattr(p, "key", p)) for p in k)
            for k, _ in jax.tree_util.tree_flatten_with_path(params)[0]
        ]
        return [(k[:-1], k[-1]) if k[:-1] in layers else (k, "") for k in leaves]

    def zeros(params):
        def one(kind, leaf):
            out = leaf.shape[-1] if leaf.ndim else 1
            if kind[1] == "kernel":
                return jnp.zeros((leaf.size // out,) * 2), jnp.zeros((out, out))
            return (jnp.zeros((out, out)),) if kind[1] == "bias" else jnp.zeros_like(leaf)

        return [one(*pair) for pair in zip(kinds(params), jax.tree.leaves(params), strict=True)]

    def forward(params, added, x):
        """Outputs, and of every layer what it sees and gives: rows (B, T, I), (B, T, O)."""
        rows, given = {}, {}

        def interceptor(next_fun, args, kwargs, context):
            layer = context.module
            if not ops.is_linear_call(context):
                return next_fun(*args, **kwargs)
            if layer.path in rows:
                raise UserError(f"layer {'/'.join(layer.path)} is called twice: it has no Kronecker factors")
            out, rows[layer.path] = ops.with_rows(layer, layer.variables["params"], *args, **kwargs)
            given[layer.path] = jnp.zeros_like(out)
            return out + added[layer.path] if added else out

        with nn.intercept_methods(interceptor):
            return module.apply({"params": params}, x), rows, given

    def measure(params, batch):
        _, rows, given = forward(params, {}, batch.x)
        found, pull = jax.vjp(lambda added: forward(params, added, batch.x)[0], given)
        grads = jax.vmap(lambda column: pull(column)[0])(likelihood.fisher_root(found, batch.y))
        count = len(batch.x)
        which = kinds(params)
        rest = [i for i, (_, kind) in enumerate(which) if not kind]
        diagonals = iter(_squares(apply, likelihood, params, rest, batch) if rest else [])

        def one(path, kind):
            if not kind:
                return next(diagonals)
            g = grads[path]
            g = g.reshape(*g.shape[:2], -1, g.shape[-1])  # (R, B, T, O)
            if kind == "bias":
                summed = g.sum(2)
                return (jnp.einsum("rbo,rbp->op", summed, summed) / count,)
            a = rows[path]
            places = a.shape[1]
            return (
                jnp.einsum("bti,btj->ij", a, a) / count,
                jnp.einsum("rbto,rbtp->op", g, g) / (count * places),
            )

        return [one(*kind) for kind in which]

    def spectrum(c, widths):
        values, basis = [], []
        for entry, width in zip(c, jax.tree.leaves(widths), strict=True):
            pairs = [_eigen(matrix) for matrix in entry] if isinstance(entry, tuple) else []
            lead = [pair[0] for pair in pairs] or [entry]
            squared = jnp.ravel(width)[0] ** 2
            values.append(squared * (jnp.outer(*lead) if len(lead) == 2 else lead[0]))
            basis.append(tuple(pair[1] for pair in pairs))
        return Spectrum(values, basis)

    def turn(basis, v, params):
        def one(basis, v, leaf):
            if len(basis) == 2:
                v = basis[0] @ v @ basis[1].T
            elif basis:
                v = basis[0] @ v
            return v.reshape(leaf.shape)

        leaves, structure = jax.tree.flatten(params)
        return jax.tree.unflatten(structure, map(one, basis, v, leaves))

    return Curvature(zeros, measure, spectrum, turn, jax.tree.leaves)


def _eigen(matrix):
    """Eigenvalues, none negative by rounding, and eigenvectors."""
    values, vectors = jnp.linalg.eigh(matrix)
    return jnp.maximum(values, 0), vectors
