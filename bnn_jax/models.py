"""From names to pure functions: a network with its prior and likelihood, and the methods that run on it."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnn_jax import estimators, objectives, ops, parts
from bnn_jax.likelihoods import gaussian
from bnn_jax.trees import leaf_names
from bnn_jax.types import Algorithm, Key, Likelihood, Params, Prior, UserError

DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}  # of the forward pass; None leaves it alone
NOISES = ("learned", "input")


class Model(NamedTuple):
    """p(w) and p(y | x, w)."""

    module: nn.Module
    apply: Callable  # (params, x) -> outputs, float32
    likelihood: Likelihood
    prior: Prior
    dtype: Any  # of the forward pass, None for that of the weights


def build(
    net: str, num_classes: int, prior: str = "fan_in", noise: str = "learned", compute: str = "float32"
) -> Model:
    """The parts called by their names.

    Classification takes the categorical likelihood, regression (`num_classes` 0) the Gaussian.

    Args:
        noise: of a regression: "learned", one level as a weight of its own, "input", a second output of the
            network, or a number, the known standard deviation in the unit the network is trained in.
        compute: the forward pass's dtype; weights, KL and likelihood stay float32.

    Raises:
        UserError: an unknown name, or a known noise that is not positive.
    """
    if compute not in DTYPES:
        raise UserError(f"unknown compute dtype {compute!r}: choose from {', '.join(DTYPES)}")
    sigma = None if noise in NOISES else _number(noise)
    make = parts.find("network", net)
    if num_classes:
        module, likelihood = make(num_classes), parts.find("likelihood", "categorical")()
    else:
        module = make(2 if noise == "input" else 1)
        module = gaussian.LearnedNoise(module) if noise == "learned" else module
        likelihood = gaussian.build(sigma)
    dtype = DTYPES[compute]
    return Model(module, ops.apply_fn(module, dtype), likelihood, parts.find("prior", prior)(), dtype)


def _number(noise: str) -> float:
    try:
        return float(noise)
    except ValueError:
        choices = ", ".join(NOISES)
        raise UserError(f"unknown noise {noise!r}: choose from {choices}, or give a number") from None


def init(key: Key, model: Model, x: Any) -> Params:
    """Initial weights for inputs like `x` (n, ...); of several keys, leaves lead with their shape.

    One program, which leaves the forward pass out. It runs once, so on CPU LLVM optimises it little, which
    took most of its time; the numbers differ by rounding at most. Not to be called under jit.
    """
    one = lambda key: model.module.init(key, jnp.asarray(x[:1], jnp.float32))["params"]
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(jax.vmap(one) if key.ndim else one, compiler_options=options)(key)


def shapes(model: Model, x: Any) -> Params:
    """Of the weights for inputs like `x` (n, ...), as `jax.ShapeDtypeStruct`.

    Raises:
        ValueError: a layer has no weights, as one of no units.
    """
    like = jax.ShapeDtypeStruct((1, *x.shape[1:]), jnp.float32)
    params = jax.eval_shape(model.module.init, jax.random.key(0), like)["params"]
    for name, leaf in zip(leaf_names(params), jax.tree.leaves(params), strict=True):
        if leaf.size == 0:
            raise ValueError(f"{name} has no weights, shape {leaf.shape}")
    return params


def method(
    name: str,
    model: Model,
    num_data: int,
    *,
    posterior: str = "mean_field",
    estimator: str = "flipout",
    num_samples: int = 1,
    strategy: str | None = None,
    kl: str = "closed_form",
    likelihood: Likelihood | None = None,
    temperature: float = 1.0,
    x_shape: Sequence[int] | None = None,
    **offered: Any,
) -> Algorithm:
    """The method called `name` on `model`, given those of the offered arguments that its `build` names.

    Args:
        num_data: N.
        posterior, estimator, num_samples, kl: the variational family and how it passes the network.
        strategy: how the samples of a step run, see `estimators.over_samples`.
        likelihood: what is trained on instead of the model's own, class-weighted say.
        temperature: of the posterior, see `objectives.tempered`.
        x_shape: of one network input, for methods that ask for the order of the layers.
        offered: `optimizer`, `beta`, `num_warmup`, ...: what else a method may want.

    Raises:
        UserError: an unknown name, or parts that do not go together.
    """
    prior, likelihood = objectives.tempered(model.prior, likelihood or model.likelihood, temperature)
    family = parts.find("posterior", posterior)()
    build = parts.find("method", name)
    ours = {
        "apply": model.apply,
        "module": model.module,
        "prior": prior,
        "scale": prior.scale,
        "likelihood": likelihood,
        "posterior": family,
        "log_joint": objectives.log_joint(model.apply, prior, likelihood, num_data),
        "num_data": num_data,
    }
    wanted = inspect.signature(build).parameters
    if "layers" in wanted and x_shape is not None:
        ours["layers"] = ops.layers(model.module, x_shape)
    if "elbo" in wanted:  # MAP may have a prior without closed-form KL
        through = estimators.build(estimator, model.module, family, num_samples, strategy, model.dtype)
        ours["elbo"] = objectives.elbo(through, family, prior, likelihood, num_data, kl)
    return parts.call(build, ours | offered)
