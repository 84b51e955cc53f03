"""Version 1's registries of handlers, and how a version 1 handler is called.

A version 1 handler takes the request as an object. Most handlers that the decorators make need its parameters only;
those are `ParamsHandler`s, for which no request object has to be made.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, get_args, get_type_hints

import mcp_types as types
from pydantic import BaseModel

from gateway.compat.models import as_url, request_meta, view_of

Version1Handler = Callable[[Any], Awaitable[Any]]
"""Takes the request object. Returns a result, in an envelope or without one."""


class ParamsHandler:
    """A handler that needs the request's parameters and nothing else of it."""

    def __init__(self, answer: Callable[[Any], Awaitable[Any]]) -> None:
        self.answer = answer

    async def __call__(self, request: Any) -> Any:
        """Answer a request object, as version 1's registry allows. None stands for a request without parameters."""
        return await self.answer(None if request is None else request.params)


async def call_handler(handler: Version1Handler, request_type: type[BaseModel], params: BaseModel) -> Any:
    """Call a version 1 handler with what version 2 has parsed."""
    if isinstance(handler, ParamsHandler):
        return await handler.answer(params)
    return await handler(_build_request(request_type, params))


def _build_request(request_type: type[BaseModel], params: BaseModel) -> Any:
    values = dict(params.__dict__)
    if values.get("meta") is not None:
        values["meta"] = request_meta(values["meta"])
    if isinstance(
        params, (types.ReadResourceRequestParams, types.SubscribeRequestParams, types.UnsubscribeRequestParams)
    ):
        values["uri"] = as_url(params.uri)
    return view_of(request_type).model_construct(
        method=request_type.model_fields["method"].default,
        params=view_of(type(params)).model_construct(params.model_fields_set, **values),
    )


def handler_of_list(
    function: Callable[..., Awaitable[Any]],
    request_type: type[BaseModel],
    to_result: Callable[[Any], Any],
) -> Version1Handler:
    """Return the handler for a function that lists something.

    A function that has a parameter for the request gets it: one that is annotated with the request's type and has no
    default. Any other parameter (`cursor=None`) keeps its default, as in version 1.
    """
    parameter = _request_parameter(function, request_type)
    if parameter is None:

        async def answer(_params: Any) -> Any:
            return to_result(await function())

        return ParamsHandler(answer)
    name, is_positional = parameter.name, parameter.kind is inspect.Parameter.POSITIONAL_ONLY

    async def answer_request(request: Any) -> Any:
        return to_result(await (function(request) if is_positional else function(**{name: request})))

    return answer_request


def _request_parameter(
    function: Callable[..., Awaitable[Any]], request_type: type[BaseModel]
) -> inspect.Parameter | None:
    try:
        parameters = inspect.signature(function).parameters
        hints = get_type_hints(function)
    except (ValueError, TypeError, NameError):
        return None
    for name, parameter in parameters.items():
        hint = hints.get(name)
        if isinstance(hint, type) and issubclass(hint, BaseModel) and _viewed(hint) is request_type:
            return parameter if parameter.default is inspect.Parameter.empty else None
    return None


class Registry(MutableMapping[type[BaseModel], Version1Handler]):
    """Version 1's handlers by request or notification type. Setting one registers it with version 2."""

    def __init__(self, register: Callable[[type[BaseModel], str, type[BaseModel], Version1Handler], None]) -> None:
        """`register` gets the type, its method, the type of its parameters, and the handler."""
        self._register = register
        self._handlers: dict[type[BaseModel], Version1Handler] = {}

    def __getitem__(self, key: type[BaseModel]) -> Version1Handler:
        return self._handlers[_viewed(key)]

    def __setitem__(self, key: type[BaseModel], handler: Version1Handler) -> None:
        key = _viewed(key)
        self._handlers[key] = handler
        self._register(key, key.model_fields["method"].default, _params_type(key), handler)

    def __delitem__(self, key: type[BaseModel]) -> None:
        raise TypeError("handlers cannot be removed: version 2 of the SDK has no way to")

    def __iter__(self) -> Iterator[type[BaseModel]]:
        return iter(self._handlers)

    def __len__(self) -> int:
        return len(self._handlers)


def _viewed(request_type: type[BaseModel]) -> type[BaseModel]:
    return getattr(request_type, "__viewed_model__", request_type)


def _params_type(request_type: type[BaseModel]) -> type[BaseModel]:
    annotation = request_type.model_fields["params"].annotation
    candidates = (annotation, *get_args(annotation))
    return next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
