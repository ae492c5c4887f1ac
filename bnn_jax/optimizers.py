"""Optimisers by their optax name, with a learning-rate schedule and a factor that a plateau lowers.

    learning rate at step t = schedule(t) * factor,   schedule: linear warm-up, then constant or cosine to 0

The factor is part of the optimiser's state and changes between steps only, when validation says so:
`optax.contrib.reduce_on_plateau` decides (`plateau`), `set_factor` writes it.
"""

import inspect
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from bnn_jax.types import Info, Params, UserError, positive

SCHEDULES = ("cosine", "constant")


class FactorState(NamedTuple):
    learning_rate_factor: jax.Array  # ()


def names() -> list[str]:
    """The optimisers of optax that need a learning rate, which may follow a schedule, and nothing else."""
    # lbfgs searches along lines and so needs the loss itself; noisy_sgd keeps a random key in its state.
    others = {"lbfgs", "noisy_sgd"}
    return sorted(
        name
        for name in set(dir(optax)) - others
        if not name.startswith("scale_by") and _takes_rate_only(getattr(optax, name))
    )


def build(
    name: str, learning_rate: float, num_steps: int, schedule: str = "cosine", warmup: int = 0
) -> optax.GradientTransformation:
    """The optimiser called `name`, `optax.adam` say.

    Args:
        learning_rate: the highest.
        num_steps: at which a cosine schedule reaches 0.
        schedule: one of `SCHEDULES`.
        warmup: steps in which the learning rate rises from 0.

    Raises:
        UserError: unknown optimiser or schedule, or a number out of range.
    """
    if name not in names():
        raise UserError(f"unknown optimizer {name!r}: choose from {', '.join(names())}")
    if schedule not in SCHEDULES:
        raise UserError(f"unknown schedule {schedule!r}: choose from {', '.join(SCHEDULES)}")
    positive("the learning rate", learning_rate)
    if not 0 <= warmup < max(num_steps, 1):
        raise UserError(f"the learning rate's warm-up must end before step {num_steps}, not last {warmup}")
    rest = num_steps - warmup
    then = optax.cosine_decay_schedule(learning_rate, max(rest, 1)) if schedule == "cosine" else learning_rate
    if warmup:
        then = then if callable(then) else optax.constant_schedule(then)
        then = optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup), then], [warmup])
    return optax.chain(getattr(optax, name)(then), _by_factor())


def ascend(
    objective: Callable, num_data: int, optimizer: optax.GradientTransformation, params: Params, state: Any
) -> tuple[Params, Any, Info]:
    """One step up a log joint: the new params and optimiser's state, and the info of the step.

    Args:
        objective: (params) -> (), nats on the full-data scale.
        num_data: N; the loss is divided by it, so that learning rates do not depend on N.
    """
    value, grads = jax.value_and_grad(lambda params: -objective(params) / num_data)(params)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, {"log_joint": -value * num_data}


def plateau(factor: float, patience: int, floor: float) -> optax.GradientTransformationExtraArgs:
    """`optax.contrib.reduce_on_plateau`: after `patience` values that are not lower, the learning rate is
    multiplied by `factor`, down to `floor` times what the schedule says. Only its state's `scale` is used.

    Raises:
        UserError: `factor` or `floor` not in (0, 1) or [0, 1), or `patience` below 1.
    """
    if not (0 < factor < 1 and 0 <= floor < 1 and patience >= 1):
        raise UserError(
            "reduce-on-plateau wants 0 < factor < 1, 0 <= floor < 1 and a patience of 1 or more, "
            f"not {factor}, {floor} and {patience}"
        )
    # Any lower value counts, as for early stopping. optax's default asks for 1e-4 of the value, and where
    # that is negative, as the NLL of a density may be, takes a worse one for better.
    least = float(jnp.finfo(jnp.float32).tiny)
    rule = optax.contrib.reduce_on_plateau(factor, patience, rtol=0.0, atol=least, min_scale=floor)
    return rule._replace(update=jax.jit(rule.update))  # else its conditionals compile anew at every call


def set_factor(state: Any, factor: float) -> Any:
    """A method's state (an ensemble's, too) with the learning rate multiplied by `factor` from now on."""
    old = optax.tree_utils.tree_get(state, "learning_rate_factor")
    # A float, not an array that the state would share: the loop gives the memory of its state away.
    return optax.tree_utils.tree_set(state, learning_rate_factor=jnp.full_like(old, float(factor)))


def _by_factor():
    def update(updates, state, params=None):
        return jax.tree.map(lambda u: u * state.learning_rate_factor.astype(u.dtype), updates), state

    return optax.GradientTransformation(lambda params: FactorState(jnp.ones(())), update)


def _takes_rate_only(candidate) -> bool:
    if not isinstance(candidate, FunctionType | partial):  # nadam is a partial adam
        return False
    parameters = list(inspect.signature(candidate, eval_str=True).parameters.values())
    if not parameters or parameters[0].name != "learning_rate":
        return False
    if not set(get_args(optax.ScalarOrSchedule)) <= set(get_args(parameters[0].annotation)):
        return False  # a number only
    return all(p.default is not p.empty for p in parameters[1:] if p.kind is not p.VAR_KEYWORD)
