"""Version 2's low-level `Server` with the surface of version 1's on top.

A strict superset on public API only: what a version 2 module does with a `Server` works on a `CompatServer`, so nothing
has to find out which version a module was written for.

A version 1 handler takes a request object and returns what version 1 let it return. Here it is wrapped into a version 2
handler, which runs it in the server's `handler_threads` and answers as version 1 did. Where we differ from mcp 1.28,
on purpose:

1. An exception of a handler other than a tool's is a JSON-RPC internal error, code -32603, with the exception's text.
   Version 1 sent the same text with code 0.
2. `outputSchema` is taken off the listing and kept in `_meta`, and results are not checked against it: almost all that
   exist have an array at the root, which handshake-era clients refuse together with the whole list.
3. Arguments are checked against `inputSchema` only with `call_tool(validate_input=True)`. Early version 1 releases
   checked nothing, and tools written for them can have schemas that no arguments satisfy.
4. `call_tool` may return one bare content block.
5. A `uri` that is no valid URL reaches the handler as text instead of being refused.
6. Keyword arguments of `Tool`, `Resource`, `ResourceTemplate` and `Prompt` that the protocol does not know are listed
   in `_meta`, where version 1 put them beside the fields.
"""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import MappingProxyType
from typing import Any, Final, TypeVar, get_args, get_type_hints

import mcp_types as types
from mcp.server import InitializationOptions, Server
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.shared.exceptions import MCPError, UrlElicitationRequiredError
from pydantic import BaseModel

from gateway.compat.context import RequestContext, build_request_context, request_ctx
from gateway.compat.handler_threads import HandlerThreads
from gateway.compat.lifespans import Variables, lifespan_on_home_loop
from gateway.compat.loop_threads import explained
from gateway.compat.models import as_url, request_meta, unwrap, view_of

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

Version1Handler = Callable[[Any], Awaitable[Any]]
"""What version 1's `request_handlers` held: takes the request object, returns a result, wrapped or not."""

# The lists whose items may carry what the protocol does not know, and the models that say what it knows.
_LISTED: Final[Mapping[str, tuple[str, type[BaseModel]]]] = MappingProxyType(
    {
        "tools/list": ("tools", types.Tool),
        "resources/list": ("resources", types.Resource),
        "resources/templates/list": ("resourceTemplates", types.ResourceTemplate),
        "prompts/list": ("prompts", types.Prompt),
    }
)


@asynccontextmanager
async def _no_lifespan(_server: Any) -> AsyncIterator[dict[str, Any]]:
    yield {}


class CompatServer(Server[Any]):
    """A version 2 `Server` that has version 1's decorators, constructor and properties as well."""

    def __init__(
        self,
        name: str,
        version: str | None = None,
        instructions: str | None = None,
        website_url: str | None = None,
        icons: list[types.Icon] | None = None,
        lifespan: Callable[[Any], AbstractAsyncContextManager[Any]] = _no_lifespan,
        **version_2_arguments: Any,
    ) -> None:
        super().__init__(
            name,
            version=version or "",
            instructions=instructions,
            website_url=website_url,
            icons=icons,
            lifespan=lifespan,
            **version_2_arguments,
        )
        self.handler_threads: HandlerThreads | None = None
        """Where version 1 handlers run. The host sets it after the factory; without it they run on its loop."""
        self.request_handlers: MutableMapping[type[BaseModel], Version1Handler] = _RequestHandlers(self)
        """Version 1's registry of request handlers by request type. Holds what was registered in version 1's ways."""
        self.notification_handlers: MutableMapping[type[BaseModel], Version1Handler] = _NotificationHandlers(self)
        self._listed_tools: dict[str, types.Tool] = {}
        self._lifespan_variables: Variables = ()

    def __class_getitem__(cls, _parameters: Any) -> type[CompatServer]:
        """Accept version 1's two type parameters, and version 2's one."""
        return cls

    @property
    def is_version_1(self) -> bool:
        """Whether handlers were registered in version 1's ways."""
        return bool(self.request_handlers or self.notification_handlers)

    @asynccontextmanager
    async def open_lifespan(self) -> AsyncIterator[Any]:
        """Enter the lifespan where the handlers run: that of a version 1 server on the home loop."""
        if self.handler_threads is None or self.lifespan is _no_lifespan or not self.is_version_1:
            async with self.lifespan(self) as state:
                yield state
            return
        async with lifespan_on_home_loop(self.handler_threads, lambda: self.lifespan(self)) as (state, variables):
            self._lifespan_variables = variables
            yield state

    @property
    def request_context(self) -> RequestContext:
        """The request that is being handled. Raises LookupError outside of a version 1 handler."""
        return request_ctx.get()

    async def run(
        self,
        read_stream: Any,
        write_stream: Any,
        initialization_options: InitializationOptions,
        raise_exceptions: bool = False,
        stateless: bool = False,
    ) -> None:
        """Serve one connection. `stateless` is version 1's; version 2 finds out by itself."""
        await super().run(read_stream, write_stream, initialization_options, raise_exceptions)

    # -- version 1's decorators

    def list_tools(self) -> Callable[[F], F]:
        """Register the handler that lists tools: `() -> list[Tool]` or `(ListToolsRequest) -> ListToolsResult`."""

        def decorator(function: F) -> F:
            call = _takes_request(function, types.ListToolsRequest)

            async def handler(request: Any) -> types.ListToolsResult:
                result = await call(request)
                if not isinstance(result, types.ListToolsResult):
                    result = types.ListToolsResult(tools=result)
                    self._listed_tools = {}
                self._listed_tools |= {tool.name: tool for tool in result.tools}
                return result

            self.request_handlers[types.ListToolsRequest] = handler
            if self.get_tool_input_schema is None:
                # Otherwise version 2 runs the whole listing before each 2026-07-28 call that has arguments.
                self.get_tool_input_schema = self._get_listed_input_schema
            return function

        return decorator

    def call_tool(self, *, validate_input: bool = False) -> Callable[[F], F]:
        """Register the handler of all tools: `(name, arguments) ->` content, structured content, both, or a result.

        Everything it raises becomes a result with `isError` and the exception's text.
        """

        def decorator(function: F) -> F:
            async def handler(request: types.CallToolRequest) -> types.Result:
                name, arguments = request.params.name, request.params.arguments or {}
                try:
                    if validate_input and (problem := await self._find_invalid_input(name, arguments)):
                        return _tool_error(f"Input validation error: {problem}")
                    return _tool_result(await function(name, arguments))
                except UrlElicitationRequiredError:
                    raise
                except Exception as exc:
                    _log_failure("Tool", name, exc)
                    return _tool_error(str(explained(exc)))

            self.request_handlers[types.CallToolRequest] = handler
            return function

        return decorator

    def list_resources(self) -> Callable[[F], F]:
        """Register `() -> list[Resource]` or `(ListResourcesRequest) -> ListResourcesResult`."""

        def decorator(function: F) -> F:
            call = _takes_request(function, types.ListResourcesRequest)

            async def handler(request: Any) -> types.ListResourcesResult:
                result = await call(request)
                is_result = isinstance(result, types.ListResourcesResult)
                return result if is_result else types.ListResourcesResult(resources=result)

            self.request_handlers[types.ListResourcesRequest] = handler
            return function

        return decorator

    def list_resource_templates(self) -> Callable[[F], F]:
        """Register `() -> list[ResourceTemplate]`."""

        def decorator(function: F) -> F:
            async def handler(_request: Any) -> types.ListResourceTemplatesResult:
                return types.ListResourceTemplatesResult(resource_templates=await function())

            self.request_handlers[types.ListResourceTemplatesRequest] = handler
            return function

        return decorator

    def read_resource(self) -> Callable[[F], F]:
        """Register `(uri) ->` text, bytes or an iterable of `ReadResourceContents`."""

        def decorator(function: F) -> F:
            async def handler(request: types.ReadResourceRequest) -> types.ReadResourceResult:
                uri = request.params.uri
                contents = await function(uri)
                match contents:
                    case str() | bytes():
                        return types.ReadResourceResult(contents=[_resource_contents(uri, contents)])
                    case Iterable():
                        return types.ReadResourceResult(
                            contents=[
                                _resource_contents(uri, item.content, item.mime_type, getattr(item, "meta", None))
                                for item in contents
                            ]
                        )
                    case _:
                        raise ValueError(f"Unexpected return type from read_resource: {type(contents)}")

            self.request_handlers[types.ReadResourceRequest] = handler
            return function

        return decorator

    def subscribe_resource(self) -> Callable[[F], F]:
        """Register `(uri) -> None`."""
        return self._register_acknowledged(types.SubscribeRequest, lambda params: (params.uri,))

    def unsubscribe_resource(self) -> Callable[[F], F]:
        """Register `(uri) -> None`."""
        return self._register_acknowledged(types.UnsubscribeRequest, lambda params: (params.uri,))

    def set_logging_level(self) -> Callable[[F], F]:
        """Register `(level) -> None`."""
        return self._register_acknowledged(types.SetLevelRequest, lambda params: (params.level,))

    def list_prompts(self) -> Callable[[F], F]:
        """Register `() -> list[Prompt]` or `(ListPromptsRequest) -> ListPromptsResult`."""

        def decorator(function: F) -> F:
            call = _takes_request(function, types.ListPromptsRequest)

            async def handler(request: Any) -> types.ListPromptsResult:
                result = await call(request)
                return (
                    result if isinstance(result, types.ListPromptsResult) else types.ListPromptsResult(prompts=result)
                )

            self.request_handlers[types.ListPromptsRequest] = handler
            return function

        return decorator

    def get_prompt(self) -> Callable[[F], F]:
        """Register `(name, arguments) -> GetPromptResult`."""

        def decorator(function: F) -> F:
            async def handler(request: types.GetPromptRequest) -> Any:
                return await function(request.params.name, request.params.arguments)

            self.request_handlers[types.GetPromptRequest] = handler
            return function

        return decorator

    def completion(self) -> Callable[[F], F]:
        """Register `(ref, argument, context) -> Completion | None`."""

        def decorator(function: F) -> F:
            async def handler(request: types.CompleteRequest) -> types.CompleteResult:
                params = request.params
                completion = await function(params.ref, params.argument, params.context)
                return types.CompleteResult(
                    completion=types.Completion(values=[]) if completion is None else completion,
                )

            self.request_handlers[types.CompleteRequest] = handler
            return function

        return decorator

    def progress_notification(self) -> Callable[[F], F]:
        """Register `(progress_token, progress, total, message) -> None` for what the client reports."""

        def decorator(function: F) -> F:
            async def handler(notification: types.ProgressNotification) -> None:
                params = notification.params
                await function(params.progress_token, params.progress, params.total, params.message)

            self.notification_handlers[types.ProgressNotification] = handler
            return function

        return decorator

    def _register_acknowledged(
        self, request_type: type[BaseModel], arguments: Callable[[Any], tuple[Any, ...]]
    ) -> Callable[[F], F]:
        def decorator(function: F) -> F:
            async def handler(request: Any) -> types.EmptyResult:
                await function(*arguments(request.params))
                return types.EmptyResult()

            self.request_handlers[request_type] = handler
            return function

        return decorator

    # -- between the versions

    async def _answer(
        self, request_type: type[BaseModel], handler: Version1Handler, ctx: ServerRequestContext[Any], params: BaseModel
    ) -> Any:
        """Run a version 1 handler for a version 2 request, and shape what it returned in its thread, lazy or not."""
        request = _build_request(request_type, params)
        context = build_request_context(ctx)

        async def perform() -> Any:
            self._set_lifespan_variables()
            token = request_ctx.set(context)
            try:
                return _to_wire(ctx.method, unwrap(await handler(request)))
            except Exception as exc:
                raise explained(exc)  # noqa: B904  # it has its cause
            finally:
                request_ctx.reset(token)

        try:
            return await self._run(perform)
        except MCPError:
            raise
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            _log_failure("Handler", ctx.method, exc)
            text = str(exc) if isinstance(exc, Exception) else f"{type(exc).__name__}: {exc}"
            if isinstance(params, types.CallToolRequestParams):
                return _to_wire(ctx.method, _tool_error(text))
            raise MCPError(types.INTERNAL_ERROR, text) from exc

    async def _observe(self, notification_type: type[BaseModel], handler: Version1Handler, params: BaseModel) -> None:
        notification = _build_request(notification_type, params)

        async def perform() -> None:
            self._set_lifespan_variables()
            await handler(notification)

        try:
            await self._run(perform)
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            # A notification has no answer to put an error into.
            _log_failure("Handler", "a notification", exc)

    async def _run(self, perform: Callable[[], Awaitable[Any]]) -> Any:
        threads = self.handler_threads
        return await (perform() if threads is None else threads.run(perform))

    def _set_lifespan_variables(self) -> None:
        """On mcp 1.x handlers run in the context of the lifespan."""
        for variable, value in self._lifespan_variables:
            variable.set(value)

    def _get_listed_input_schema(self, name: str) -> Mapping[str, Any] | None:
        tool = self._listed_tools.get(name)
        return None if tool is None else tool.input_schema

    async def _find_invalid_input(self, name: str, arguments: dict[str, Any]) -> str | None:
        # Imported here because it is slow and hardly a module asks for it; mcp itself depends on it.
        import jsonschema  # type: ignore[import-untyped]

        if name not in self._listed_tools and (list_tools := self.request_handlers.get(types.ListToolsRequest)):
            await list_tools(None)
        tool = self._listed_tools.get(name)
        if tool is None:
            return None
        try:
            jsonschema.validate(instance=arguments, schema=tool.input_schema)
        except jsonschema.ValidationError as exc:
            return str(exc.message)
        return None


class _Registry(MutableMapping[type[BaseModel], Version1Handler]):
    """Version 1's handlers by request or notification type. Setting one registers it with version 2."""

    def __init__(self, server: CompatServer) -> None:
        self._server = server
        self._handlers: dict[type[BaseModel], Version1Handler] = {}

    def __getitem__(self, key: type[BaseModel]) -> Version1Handler:
        return self._handlers[_viewed(key)]

    def __setitem__(self, key: type[BaseModel], handler: Version1Handler) -> None:
        key = _viewed(key)
        self._handlers[key] = handler
        self._register(key, key.model_fields["method"].default, handler)

    def __delitem__(self, key: type[BaseModel]) -> None:
        raise TypeError("handlers cannot be removed: version 2 of the SDK has no way to")

    def __iter__(self) -> Iterator[type[BaseModel]]:
        return iter(self._handlers)

    def __len__(self) -> int:
        return len(self._handlers)

    def _register(self, key: type[BaseModel], method: str, handler: Version1Handler) -> None:
        raise NotImplementedError


class _RequestHandlers(_Registry):
    def _register(self, key: type[BaseModel], method: str, handler: Version1Handler) -> None:
        server = self._server

        async def answer(ctx: ServerRequestContext[Any], params: BaseModel) -> Any:
            return await server._answer(key, handler, ctx, params)

        server.add_request_handler(method, _params_type(key), answer)


class _NotificationHandlers(_Registry):
    def _register(self, key: type[BaseModel], method: str, handler: Version1Handler) -> None:
        server = self._server

        async def observe(_ctx: ServerRequestContext[Any], params: BaseModel) -> None:
            await server._observe(key, handler, params)

        server.add_notification_handler(method, _params_type(key), observe)


def _viewed(request_type: type[BaseModel]) -> type[BaseModel]:
    return getattr(request_type, "__viewed_model__", request_type)


def _params_type(request_type: type[BaseModel]) -> type[BaseModel]:
    annotation = request_type.model_fields["params"].annotation
    candidates = (annotation, *get_args(annotation))
    return next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))


def _build_request(request_type: type[BaseModel], params: BaseModel) -> Any:
    """Build the request object that version 1 handed to its handlers."""
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


def _takes_request(function: Callable[..., Awaitable[Any]], request_type: type[BaseModel]) -> Version1Handler:
    """Return a call that passes the request to a handler which has a parameter for it, annotated and without a default.

    Any other parameter (`cursor=None`) keeps its default, as in version 1.
    """
    try:
        parameters = inspect.signature(function).parameters
        hints = get_type_hints(function)
    except (ValueError, TypeError, NameError):
        return lambda _request: function()
    for name, parameter in parameters.items():
        hint = hints.get(name)
        if not isinstance(hint, type) or not issubclass(hint, BaseModel) or _viewed(hint) is not request_type:
            continue
        if parameter.default is not inspect.Parameter.empty:
            break
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            return lambda request: function(request)
        return lambda request: function(**{name: request})
    return lambda _request: function()


def _tool_result(returned: Any) -> types.Result:
    """Apply version 1's rules to what a tool returned."""
    match returned:
        case types.Result():
            return returned
        case BaseModel():
            return types.CallToolResult(content=[returned])  # type: ignore[list-item]  # checked by the model
        case (content, None | dict() as structured) if isinstance(returned, tuple):
            return types.CallToolResult(content=list(content), structured_content=structured)
        case dict():
            text = json.dumps(returned, indent=2)
            return types.CallToolResult(content=[types.TextContent(text=text)], structured_content=returned)
        case Iterable():
            return types.CallToolResult(content=list(returned))
        case _:
            return _tool_error(f"Unexpected return type from tool: {type(returned).__name__}")


def _tool_error(text: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=text)], is_error=True)


def _resource_contents(
    uri: object, data: str | bytes, mime_type: str | None = None, meta: dict[str, Any] | None = None
) -> types.TextResourceContents | types.BlobResourceContents:
    if isinstance(data, str):
        return types.TextResourceContents(uri=str(uri), text=data, mime_type=mime_type or "text/plain", _meta=meta)
    blob = base64.b64encode(data).decode()
    mime_type = mime_type or "application/octet-stream"
    return types.BlobResourceContents(uri=str(uri), blob=blob, mime_type=mime_type, _meta=meta)


def _to_wire(method: str, result: Any) -> Any:
    """Dump a result, keeping in `_meta` what version 2 would drop or stumble over."""
    if not isinstance(result, BaseModel) or isinstance(result, types.ErrorData):
        return result
    # serialize_as_any: views may hold more than the fields of the model that the result declares.
    wire = result.model_dump(by_alias=True, mode="json", exclude_none=True, serialize_as_any=True, warnings=False)
    if method in _LISTED:
        key, model = _LISTED[method]
        wire[key] = [_with_unknown_in_meta(item, model) for item in wire[key]]
    return wire


def _with_unknown_in_meta(item: dict[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    known = {info.alias or name for name, info in model.model_fields.items()}
    kept = {key: value for key, value in item.items() if key in known}
    moved = {key: value for key, value in item.items() if key not in known}
    if model is types.Resource:
        kept["uri"] = str(as_url(item["uri"]))
    if model is types.Tool:
        if "outputSchema" in kept:
            moved["outputSchema"] = kept.pop("outputSchema")
        kept["inputSchema"] = _listable_schema(item["inputSchema"])
        if kept["inputSchema"] != item["inputSchema"]:
            moved["inputSchema"] = item["inputSchema"]
    if moved:
        kept["_meta"] = moved | item.get("_meta", {})
    return kept


def _listable_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Mend what makes version 2 refuse the whole list: it knows the types of four keywords at a schema's root."""
    mended = {**schema, "type": "object"}
    properties, required = mended.get("properties"), mended.get("required")
    if properties is not None and not (
        isinstance(properties, dict) and all(isinstance(value, (dict, bool)) for value in properties.values())
    ):
        del mended["properties"]
    if required is not None and not (isinstance(required, list) and all(isinstance(name, str) for name in required)):
        del mended["required"]
    if not isinstance(mended.get("$schema", ""), str):
        del mended["$schema"]
    return mended


def _log_failure(what: str, name: str, exc: BaseException) -> None:
    # The text may hold what a user typed, or a key in a URL: a host's log gets the frames without it (`redaction`).
    logger.info("%s %r failed with %s", what, name, type(exc).__name__)
    logger.debug("%s %r failed", what, name, exc_info=exc)


__all__ = ["CompatServer", "ReadResourceContents", "request_ctx"]
