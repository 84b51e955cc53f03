"""Version 2's low-level `Server`, with what version 1's had as well: decorators, constructor, properties.

A strict superset that uses public API only: what a version 2 module does with a `Server` works on a `CompatServer`, so
the host need not find out for which version a module was written.

Each version 1 handler is wrapped into a version 2 handler, which runs it in the server's `handler_threads` and answers
as version 1 did. Where this differs from mcp 1.28, on purpose:

1. An exception of a handler other than a tool's is a JSON-RPC internal error, code -32603, with the exception's text.
   Version 1 sent the same text with code 0.
2. `outputSchema` is taken off the listing and kept in `_meta`, and results are not checked against it: almost all that
   exist have an array at the root, and handshake-era clients then refuse the whole list.
3. Arguments are checked against `inputSchema` only with `call_tool(validate_input=True)`. Early version 1 releases
   checked nothing, and tools written for them may have schemas that no arguments satisfy.
4. `call_tool` may return one bare content block.
5. A `uri` that is not a valid URL reaches the handler as text instead of being refused.
6. Keyword arguments of `Tool`, `Resource`, `ResourceTemplate` and `Prompt` that the protocol does not know are listed
   in `_meta`. Version 1 put them beside the known fields.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import mcp_types as types
from mcp.server import InitializationOptions, Server
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError, UrlElicitationRequiredError
from pydantic import BaseModel

from gateway.compat.context import RequestContext, request_ctx
from gateway.compat.failures import log_failure
from gateway.compat.handler_threads import HandlerThreads
from gateway.compat.handlers import ParamsHandler, Registry, Version1Handler, call_handler, handler_of_list
from gateway.compat.lifespans import Variables, lifespan_on_home_loop
from gateway.compat.loop_threads import explained
from gateway.compat.models import as_url, unwrap
from gateway.compat.results import resource_result, to_wire, tool_error, tool_result

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])


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
        """Where version 1 handlers run. The host sets it. Without it they run on the loop of the caller."""
        self.request_handlers: MutableMapping[type[BaseModel], Version1Handler] = Registry(self._add_request_handler)
        """The request handlers that were registered in version 1's ways, by request type."""
        self.notification_handlers: MutableMapping[type[BaseModel], Version1Handler] = Registry(
            self._add_notification_handler
        )
        """The notification handlers that were registered in version 1's ways, by notification type."""
        self.lists_output_schemas = False
        """Whether output schemas are listed. Those of `FastMCP` are; see 2 above."""
        self._listed_tools: dict[str, types.Tool] = {}
        self._lifespan_variables: Variables = ()

    def __class_getitem__(cls, _parameters: Any) -> type[CompatServer]:
        """Accept version 1's two type parameters, and version 2's one."""
        return cls

    @property
    def is_version_1(self) -> bool:
        """Whether handlers were registered in version 1's ways."""
        return bool(self.request_handlers or self.notification_handlers)

    @property
    def request_context(self) -> RequestContext:
        """The request that is being handled. Raises LookupError outside of a version 1 handler."""
        return request_ctx.get()

    @asynccontextmanager
    async def open_lifespan(self) -> AsyncIterator[Any]:
        """Enter the lifespan on the loop that runs the handlers: the home loop, if they are version 1's."""
        if self.handler_threads is None or self.lifespan is _no_lifespan or not self.is_version_1:
            async with self.lifespan(self) as state:
                yield state
            return
        async with lifespan_on_home_loop(self.handler_threads, lambda: self.lifespan(self)) as (state, variables):
            self._lifespan_variables = variables
            yield state

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

    # -- Version 1's decorators

    def list_tools(self) -> Callable[[F], F]:
        """Register the function that lists tools: `() -> list[Tool]` or `(ListToolsRequest) -> ListToolsResult`."""

        def to_result(returned: Any) -> types.ListToolsResult:
            result: types.ListToolsResult
            if isinstance(returned, types.ListToolsResult):
                result = returned  # one page of several
            else:
                result = types.ListToolsResult(tools=returned)
                self._listed_tools = {}
            self._listed_tools |= {tool.name: tool for tool in result.tools}
            return result

        def decorator(function: F) -> F:
            handler = handler_of_list(function, types.ListToolsRequest, to_result)
            self.request_handlers[types.ListToolsRequest] = handler
            if self.get_tool_input_schema is None:
                # Otherwise version 2 runs the whole listing before each 2026-07-28 call that has arguments.
                self.get_tool_input_schema = self._get_listed_input_schema
            return function

        return decorator

    def call_tool(self, *, validate_input: bool = False) -> Callable[[F], F]:
        """Register the function of all tools: `(name, arguments) ->` content, structured content, both, or a result.

        Everything it raises becomes a result with `isError` and the exception's text.
        """

        def decorator(function: F) -> F:
            async def answer(params: types.CallToolRequestParams) -> types.Result:
                name, arguments = params.name, params.arguments or {}
                try:
                    if validate_input and (problem := await self._find_invalid_input(name, arguments)):
                        return tool_error(f"Input validation error: {problem}")
                    return tool_result(await function(name, arguments))
                except UrlElicitationRequiredError:
                    raise
                except Exception as exc:
                    log_failure(logger, "Tool", name, exc)
                    return tool_error(str(explained(exc)))

            self.request_handlers[types.CallToolRequest] = ParamsHandler(answer)
            return function

        return decorator

    def list_resources(self) -> Callable[[F], F]:
        """Register `() -> list[Resource]` or `(ListResourcesRequest) -> ListResourcesResult`."""

        def to_result(returned: Any) -> Any:
            is_result = isinstance(returned, types.ListResourcesResult)
            return returned if is_result else types.ListResourcesResult(resources=returned)

        return self._register_list(types.ListResourcesRequest, to_result)

    def list_resource_templates(self) -> Callable[[F], F]:
        """Register `() -> list[ResourceTemplate]`."""

        def decorator(function: F) -> F:
            async def answer(_params: Any) -> types.ListResourceTemplatesResult:
                return types.ListResourceTemplatesResult(resource_templates=await function())

            self.request_handlers[types.ListResourceTemplatesRequest] = ParamsHandler(answer)
            return function

        return decorator

    def read_resource(self) -> Callable[[F], F]:
        """Register `(uri) ->` text, bytes or an iterable of `ReadResourceContents`."""

        def decorator(function: F) -> F:
            async def answer(params: Any) -> types.ReadResourceResult:
                uri = as_url(str(params.uri))
                return resource_result(uri, await function(uri))

            self.request_handlers[types.ReadResourceRequest] = ParamsHandler(answer)
            return function

        return decorator

    def subscribe_resource(self) -> Callable[[F], F]:
        """Register `(uri) -> None`."""
        return self._register_acknowledged(types.SubscribeRequest, lambda params: as_url(str(params.uri)))

    def unsubscribe_resource(self) -> Callable[[F], F]:
        """Register `(uri) -> None`."""
        return self._register_acknowledged(types.UnsubscribeRequest, lambda params: as_url(str(params.uri)))

    def set_logging_level(self) -> Callable[[F], F]:
        """Register `(level) -> None`."""
        return self._register_acknowledged(types.SetLevelRequest, lambda params: params.level)

    def list_prompts(self) -> Callable[[F], F]:
        """Register `() -> list[Prompt]` or `(ListPromptsRequest) -> ListPromptsResult`."""

        def to_result(returned: Any) -> Any:
            is_result = isinstance(returned, types.ListPromptsResult)
            return returned if is_result else types.ListPromptsResult(prompts=returned)

        return self._register_list(types.ListPromptsRequest, to_result)

    def get_prompt(self) -> Callable[[F], F]:
        """Register `(name, arguments) -> GetPromptResult`."""

        def decorator(function: F) -> F:
            async def answer(params: types.GetPromptRequestParams) -> Any:
                return await function(params.name, params.arguments)

            self.request_handlers[types.GetPromptRequest] = ParamsHandler(answer)
            return function

        return decorator

    def completion(self) -> Callable[[F], F]:
        """Register `(ref, argument, context) -> Completion | None`."""

        def decorator(function: F) -> F:
            async def answer(params: types.CompleteRequestParams) -> types.CompleteResult:
                completion = await function(params.ref, params.argument, params.context)
                return types.CompleteResult(
                    completion=types.Completion(values=[]) if completion is None else completion,
                )

            self.request_handlers[types.CompleteRequest] = ParamsHandler(answer)
            return function

        return decorator

    def progress_notification(self) -> Callable[[F], F]:
        """Register `(progress_token, progress, total, message) -> None` for what the client reports."""

        def decorator(function: F) -> F:
            async def answer(params: types.ProgressNotificationParams) -> None:
                await function(params.progress_token, params.progress, params.total, params.message)

            self.notification_handlers[types.ProgressNotification] = ParamsHandler(answer)
            return function

        return decorator

    def _register_list(self, request_type: type[BaseModel], to_result: Callable[[Any], Any]) -> Callable[[F], F]:
        def decorator(function: F) -> F:
            self.request_handlers[request_type] = handler_of_list(function, request_type, to_result)
            return function

        return decorator

    def _register_acknowledged(self, request_type: type[BaseModel], argument: Callable[[Any], Any]) -> Callable[[F], F]:
        def decorator(function: F) -> F:
            async def answer(params: Any) -> types.EmptyResult:
                await function(argument(params))
                return types.EmptyResult()

            self.request_handlers[request_type] = ParamsHandler(answer)
            return function

        return decorator

    # -- From version 2's requests to version 1's handlers

    def _add_request_handler(
        self, request_type: type[BaseModel], method: str, params_type: type[BaseModel], handler: Version1Handler
    ) -> None:
        async def answer(ctx: ServerRequestContext[Any], params: BaseModel) -> Any:
            return await self._answer(request_type, handler, ctx, params)

        self.add_request_handler(method, params_type, answer)

    def _add_notification_handler(
        self, notification_type: type[BaseModel], method: str, params_type: type[BaseModel], handler: Version1Handler
    ) -> None:
        async def observe(_ctx: ServerRequestContext[Any], params: BaseModel) -> None:
            await self._observe(notification_type, handler, params)

        self.add_notification_handler(method, params_type, observe)

    async def _answer(
        self, request_type: type[BaseModel], handler: Version1Handler, ctx: ServerRequestContext[Any], params: BaseModel
    ) -> Any:
        context = RequestContext(ctx, asyncio.get_running_loop())

        async def perform() -> Any:
            self._set_lifespan_variables()
            token = request_ctx.set(context)
            try:
                # A lazy result runs the handler's code while it is dumped: that must happen here, too.
                result = unwrap(await call_handler(handler, request_type, params))
                return to_wire(ctx.method, result, lists_output_schemas=self.lists_output_schemas)
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
            log_failure(logger, "Handler", ctx.method, exc)
            text = str(exc) if isinstance(exc, Exception) else f"{type(exc).__name__}: {exc}"
            if isinstance(params, types.CallToolRequestParams):
                return to_wire(ctx.method, tool_error(text))
            raise MCPError(types.INTERNAL_ERROR, text) from exc

    async def _observe(self, notification_type: type[BaseModel], handler: Version1Handler, params: BaseModel) -> None:
        async def perform() -> None:
            self._set_lifespan_variables()
            await call_handler(handler, notification_type, params)

        try:
            await self._run(perform)
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            # A notification is not answered, so the error can only be logged.
            log_failure(logger, "Handler", "a notification", exc)

    async def _run(self, perform: Callable[[], Awaitable[Any]]) -> Any:
        threads = self.handler_threads
        return await (perform() if threads is None else threads.run(perform))

    def _set_lifespan_variables(self) -> None:
        """Set the context variables that the lifespan set. On mcp 1.x handlers run in the context of the lifespan."""
        for variable, value in self._lifespan_variables:
            variable.set(value)

    def _get_listed_input_schema(self, name: str) -> Mapping[str, Any] | None:
        tool = self._listed_tools.get(name)
        return None if tool is None else tool.input_schema

    async def _find_invalid_input(self, name: str, arguments: dict[str, Any]) -> str | None:
        # Imported here because it is slow and few modules need it. mcp itself depends on it.
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
