r"""Estimators: how a distribution over weights passes through a network, S samples at a time.

    sampling        w_s ~ q;  outputs f(x; w_s). Unbiased for any network and family; all examples
                    share the draw (Kingma & Welling; Blundell et al., arXiv:1505.05424).
    antithetic      the same in pairs mean + d, mean - d: odd terms cancel within a pair.
    local_reparam   per linear layer h ~ N(layer(x; mean), layer(x^2; std^2)), own noise per example
                    (Kingma et al., arXiv:1506.02557). Exact for Dense. For Conv the variance of each
                    output is exact, but outputs at different positions become independent, where true
                    weights would correlate them: the ELBO differs slightly from that of `sampling`.
    flipout         layer(x; mean) + r_out * layer(r_in * x; d), random signs r per example and channel
                    (Wen et al., arXiv:1803.04386): marginally exact for independent symmetric
                    families, decorrelated within the batch, at the cost of two passes.

`local_reparam` and `flipout` intercept every `nn.Dense` and `nn.Conv` of an unchanged linen module;
weights of other layers (norms, noise) are sampled once and shared by the batch. A layer called twice
gets independent noise at each call.
"""

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnn_jax import noise, ops
from bnn_jax.trees import at, stack
from bnn_jax.types import Estimator, Key, Posterior, UserError

STRATEGIES = ("vmap", "unroll", "map")
Strategy = str | Callable | None


# Backend -> strategy, by the table of samples in docs/performance.md (benchmarks/speed.py). A backend that is
# not measured takes "map", which costs S passes: "vmap" over kernels makes grouped convolutions, whose
# gradient is reported slow on CUDA (jax-ml/jax#13800).
PREFERRED = {"cpu": "unroll"}


def preferred_strategy() -> str:
    """How S samples run on this backend where nobody says it."""
    return PREFERRED.get(jax.default_backend(), "map")


def over_samples(f: Callable, xs: Any, strategy: Strategy = None) -> Any:
    """`f` on every entry of the leading axis of `xs`, stacked.

    Args:
        strategy: "vmap" (one batched program), "unroll" (S copies in one program), "map" (a loop, with the
            memory of one, also in training: its gradient computes `f` a second time) or "map(c)" (c at a
            time, with the memory of c), None for the backend's preferred one, or a function (f, xs) ->
            stacked results of your own, such as `sharding.over_samples(mesh)`.

    Raises:
        UserError: an unknown strategy.
    """
    if callable(strategy):
        return strategy(f, xs)
    name, chunk = _parsed(strategy or preferred_strategy())
    count = jax.tree.leaves(xs)[0].shape[0]
    if name == "map" and chunk < count:
        alone = jax.checkpoint(ops.in_loop(f), prevent_cse=False)  # within a loop nothing can be shared
        return jax.lax.map(alone, xs, batch_size=chunk if chunk > 1 else None)
    if name == "unroll" or count == 1:
        return stack([f(jax.tree.map(lambda a, i=i: a[i], xs)) for i in range(count)])
    return jax.vmap(ops.in_loop(f))(xs)


def _parsed(strategy):
    """Its name, and of "map(c)" the number c, of "map" 1."""
    known = re.fullmatch(r"(vmap|unroll|map)|(map)\((\d+)\)", strategy)
    if known is None or known[3] == "0":
        raise UserError(f"unknown strategy {strategy!r}: choose from {', '.join(STRATEGIES)}, map(c)")
    return known[1] or known[2], int(known[3] or 1)


def sampling(
    apply: Callable, posterior: Posterior, num_samples: int = 1, strategy: Strategy = None
) -> Estimator:
    """Sampled weights, for any pure `apply(params, x)` and any family.

    Raises:
        UserError: `num_samples` is below 1.
    """
    _at_least(num_samples, 1)

    def estimate(key: Key, phi, x):
        def one(k):
            weights = posterior.sample(k, phi)
            return apply(weights, x), weights

        return over_samples(one, jax.random.split(key, num_samples), strategy)

    return estimate


def antithetic(
    apply: Callable, posterior: Posterior, num_samples: int = 2, strategy: Strategy = None
) -> Estimator:
    """Sampled weights in pairs mirrored at the mean; `num_samples` counts both halves.

    Raises:
        UserError: `num_samples` is odd, or the family has no `moments` (is not symmetric).
    """
    _at_least(num_samples, 2)
    _needs_moments(posterior, "antithetic")
    if num_samples % 2:
        raise UserError(f"antithetic pairs need an even number of samples, not {num_samples}")

    def estimate(key: Key, phi, x):
        mean, _ = posterior.moments(phi)

        def pair(k):
            plus = posterior.sample(k, phi)
            minus = jax.tree.map(lambda m, w: 2 * m - w, mean, plus)
            return stack([apply(plus, x), apply(minus, x)]), stack([plus, minus])

        pairs = over_samples(pair, jax.random.split(key, num_samples // 2), strategy)
        return jax.tree.map(lambda a: a.reshape(num_samples, *a.shape[2:]), pairs)

    return estimate


def local_reparam(
    module: nn.Module,
    posterior: Posterior,
    num_samples: int = 1,
    strategy: Strategy = None,
    dtype: Any = None,
) -> Estimator:
    """Local reparameterisation of every `nn.Dense` and `nn.Conv` in `module`.

    Raises:
        UserError: the family has no `moments`, or a convolution has a mask.
    """

    def layer_sample(words, layer, apply, x, mean, std, draw):
        if getattr(layer, "mask", None) is not None:
            raise UserError("local_reparam does not know masked layers; use sampling")
        centre = apply(mean, x)
        variance = apply(jax.tree.map(jnp.square, std), jnp.square(x))
        # The gradient of sqrt is infinite at 0, where a window of zero inputs without bias lands.
        deviation = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
        # In float32 first: normal numbers drawn in bfloat16 take few values and none beyond 2.7. With the
        # batch last, as `lowering` has its outputs in memory.
        batch, *spatial, features = centre.shape
        drawn = noise.normal_from(words, (features, *spatial, batch))
        return centre + deviation * jnp.swapaxes(drawn, 0, -1).astype(centre.dtype)

    return _intercepting(layer_sample, "local_reparam", module, posterior, num_samples, strategy, dtype)


def flipout(
    module: nn.Module,
    posterior: Posterior,
    num_samples: int = 1,
    strategy: Strategy = None,
    dtype: Any = None,
) -> Estimator:
    """Flipout of every `nn.Dense` and `nn.Conv` in `module`: one shared perturbation, one sign per
    example and channel (not per pixel).

    Raises:
        UserError: the family has no `moments`.
    """

    def layer_sample(words, layer, apply, x, mean, std, draw):
        centre = apply(mean, x)
        delta = jax.tree.map(jnp.subtract, draw, mean)
        drawn = noise.signs_from(words, (x.shape[0], x.shape[-1] + centre.shape[-1]), x.dtype)
        inside = tuple(range(1, x.ndim - 1))
        sign_in, sign_out = (jnp.expand_dims(s, inside) for s in jnp.split(drawn, [x.shape[-1]], 1))
        return centre + sign_out * apply(delta, x * sign_in)

    return _intercepting(layer_sample, "flipout", module, posterior, num_samples, strategy, dtype)


def build(
    name: str,
    module: nn.Module,
    posterior: Posterior,
    num_samples: int,
    strategy: Strategy = None,
    dtype: Any = None,
) -> Estimator:
    """The estimator called `name`, for a linen module.

    Args:
        dtype: of the forward pass, bfloat16 say; the weights are drawn, and handed to the KL, in their own.

    Raises:
        UserError: no such estimator; the message lists the choices. And as the estimators do.
    """
    on_apply = {"sampling": sampling, "antithetic": antithetic}
    on_module = {"local_reparam": local_reparam, "flipout": flipout}
    if name in on_apply:
        return on_apply[name](ops.apply_fn(module, dtype), posterior, num_samples, strategy)
    if name in on_module:
        return on_module[name](module, posterior, num_samples, strategy, dtype)
    raise UserError(f"unknown estimator {name!r}: choose from {', '.join({**on_apply, **on_module})}")


def _intercepting(layer_sample, name, module, posterior, num_samples, strategy, dtype) -> Estimator:
    _at_least(num_samples, 1)
    _needs_moments(posterior, name)

    def estimate(key: Key, phi, x):
        mean, std = posterior.moments(phi)
        forward = lambda params: module.apply({"params": ops.cast(params, dtype)}, ops.cast(x, dtype))
        num_calls = len(ops.linear_calls(forward, mean))

        def one(k):
            key_draw, key_layers = jax.random.split(k)
            draw = posterior.sample(key_draw, phi)
            # Layers are traced in a fixed order: each call takes the next of the generator's keys.
            words = iter(noise.words(key_layers, num_calls))

            def interceptor(next_fun, args, kwargs, context):
                layer = context.module
                if not ops.is_linear_call(context):
                    return next_fun(*args, **kwargs)
                own = [at(tree, layer.path) for tree in (mean, std, draw)]
                # Cast at the last moment: the difference of a draw and the mean would drown in bfloat16.
                apply = lambda params, x: ops.unbound(layer).apply({"params": ops.cast(params, dtype)}, x)
                return layer_sample(next(words), layer, apply, *args, *own)

            with nn.intercept_methods(interceptor):
                return ops.to_float32(forward(draw), dtype)

        return over_samples(one, jax.random.split(key, num_samples), strategy), None

    return estimate


def _at_least(num_samples, least):
    if num_samples < least:
        raise UserError(f"num_samples must be at least {least}, not {num_samples}")


def _needs_moments(posterior, name):
    if posterior.moments is None:
        raise UserError(f"{name} needs independent symmetric weights; this family has none: use sampling")
