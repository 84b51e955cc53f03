"""Calls an author's functions with as many of the offered values as they take."""

import inspect
from collections.abc import Callable, Mapping
from inspect import BoundArguments, Parameter, Signature
from typing import Any, Final

_ANY_SIGNATURE: Final = Signature(
    [Parameter("arguments", Parameter.VAR_POSITIONAL), Parameter("named_arguments", Parameter.VAR_KEYWORD)]
)


async def call(function: Callable[..., Any], offered: Mapping[str, Any]) -> Any:
    """Call `function`, plain or async, with the offered values that it takes.

    Raises:
        TypeError: as `bind`.
        BaseException: what the function raised.
    """
    bound = bind(function, offered)
    result = function(*bound.args, **bound.kwargs)
    return await result if inspect.isawaitable(result) else result


def bind(function: Callable[..., Any], offered: Mapping[str, Any]) -> BoundArguments:
    """Choose the arguments of `function` from the offered values: first by name, then by position.

    A parameter of another name gets the next value that no parameter is named after, unless it has a default other than
    None and the empty string. Values that are left go to `*args`, or by name to `**kwargs`; otherwise they are dropped.

    Raises:
        TypeError: the function needs more than is offered.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # a callable of C without a signature
        signature = _ANY_SIGNATURE
    rest = {name: value for name, value in offered.items() if not _takes(signature, name)}
    arguments: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        is_required = parameter.default is Parameter.empty
        if parameter.kind is Parameter.VAR_POSITIONAL:
            arguments[name] = tuple(rest.values())
            rest = {}
        elif parameter.kind is Parameter.VAR_KEYWORD:
            arguments[name] = rest
        elif name in offered:
            arguments[name] = offered[name]
        elif (
            rest
            and parameter.kind is not Parameter.KEYWORD_ONLY
            and (is_required or parameter.default is None or _is_empty_text(parameter.default))
        ):
            arguments[name] = rest.pop(next(iter(rest)))
        elif is_required:
            raise TypeError(f"the host has no value for its parameter {name}.")
    return BoundArguments(signature, arguments)


def _is_empty_text(value: object) -> bool:
    return isinstance(value, str) and not value


def _takes(signature: Signature, name: str) -> bool:
    parameter = signature.parameters.get(name)
    return parameter is not None and parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
