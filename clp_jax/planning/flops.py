"""Floating-point operations of a program as it is written, before any compiler."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval


def of_program(jaxpr: core.ClosedJaxpr) -> int:
    """Operations of all matrix products, over all devices: 2·M·N·K for each of them.

    The body of a loop counts as often as it runs: a scan its length, a `while` the number that its
    condition compares a counter with (the decode loop: to the longest completion). Of the branches
    of a condition the most expensive one counts. What no result depends on, and everything that is
    no matrix product, counts 0.
    """
    used, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    return _of_all(used)


def _of_all(jaxpr: core.Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return 2 * math.prod(equation.outvars[0].aval.shape) * inner
    if name == "cond":
        return max(_of_all(branch.jaxpr) for branch in _branches(parameters))
    if name == "while":
        condition, body = parameters["cond_jaxpr"], parameters["body_jaxpr"]
        return while_steps(condition) * (_of_all(body.jaxpr) + _of_all(condition.jaxpr))
    times = parameters["length"] if name == "scan" else 1
    return times * sum(_of_all(inside) for inside in _inside(parameters))


def _branches(parameters: dict[str, Any]) -> list[core.ClosedJaxpr]:
    """Of a condition those that a TPU may take."""
    branches = parameters["branches"]
    platforms = parameters.get("branches_platforms") or [None] * len(branches)
    return [
        branch
        for branch, these in zip(branches, platforms, strict=True)
        if these is None or "tpu" in these
    ]


def _inside(parameters: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """The programs that an equation calls."""
    for value in parameters.values():
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value


def while_steps(condition: core.ClosedJaxpr) -> int:
    """How often a loop runs at most: the greatest whole number that its condition compares with."""
    bounds = [1]
    for equation in condition.jaxpr.eqns:
        if equation.primitive.name in ("lt", "le", "gt", "ge"):
            for operand in equation.invars:
                value = getattr(operand, "val", None)
                if value is not None and np.issubdtype(np.asarray(value).dtype, np.integer):
                    bounds.append(int(value))
    return max(bounds)
