"""Version 1's `FastMCP`."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, TypeVar

import mcp_types as types
from mcp.server.lowlevel.helper_types import ReadResourceContents
from starlette.applications import Starlette
from starlette.routing import Route

from gateway.compat.fastmcp.context import Context
from gateway.compat.fastmcp.exceptions import ResourceError
from gateway.compat.fastmcp.prompts import Prompt, PromptManager
from gateway.compat.fastmcp.resources import FunctionResource, Resource, ResourceManager
from gateway.compat.fastmcp.tools import Tool, ToolManager
from gateway.compat.server import CompatServer

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Settings:
    """What version 1's constructor takes by keyword. Modules read and set these; the host does not use them."""

    debug: bool = False
    log_level: str = "INFO"
    host: str = "127.0.0.1"
    port: int = 8000
    mount_path: str = "/"
    sse_path: str = "/sse"
    message_path: str = "/messages/"
    streamable_http_path: str = "/mcp"
    json_response: bool = False
    stateless_http: bool = False
    warn_on_duplicate_resources: bool = True
    warn_on_duplicate_tools: bool = True
    warn_on_duplicate_prompts: bool = True
    dependencies: list[str] = field(default_factory=list)
    lifespan: Callable[[Any], AbstractAsyncContextManager[Any]] | None = None
    auth: Any = None
    transport_security: Any = None


class FastMCP:
    """A server made of functions. Its type parameter is accepted and ignored."""

    def __init__(
        self,
        name: str | None = None,
        instructions: str | None = None,
        website_url: str | None = None,
        icons: list[types.Icon] | None = None,
        auth_server_provider: Any = None,
        token_verifier: Any = None,
        event_store: Any = None,
        retry_interval: int | None = None,
        *,
        tools: list[Tool] | None = None,
        **settings: Any,
    ) -> None:
        self.settings = Settings(**settings)
        lifespan = self.settings.lifespan
        self._mcp_server = CompatServer(
            name or "FastMCP",
            version("mcp"),  # as on version 1: the SDK's
            instructions,
            website_url,
            icons,
            **({} if lifespan is None else {"lifespan": lambda _server: lifespan(self)}),
        )
        self._mcp_server.lists_output_schemas = True
        self._tool_manager = ToolManager(self.settings.warn_on_duplicate_tools, tools=tools)
        self._resource_manager = ResourceManager(self.settings.warn_on_duplicate_resources)
        self._prompt_manager = PromptManager(self.settings.warn_on_duplicate_prompts)
        self._custom_starlette_routes: list[Route] = []
        self.dependencies = self.settings.dependencies
        self._register_handlers()

    def __class_getitem__(cls, _parameters: Any) -> type[FastMCP]:
        return cls

    @property
    def name(self) -> str:
        """The server's name."""
        return self._mcp_server.name

    @property
    def instructions(self) -> str | None:
        """What clients tell their model about the server."""
        return self._mcp_server.instructions

    @property
    def website_url(self) -> str | None:
        """Where people read about the server."""
        return self._mcp_server.website_url

    @property
    def icons(self) -> list[types.Icon] | None:
        """The server's icons."""
        return self._mcp_server.icons

    def get_context(self) -> Context:
        """The context of the request that is being handled. Outside of one, most of its methods raise."""
        try:
            request_context = self._mcp_server.request_context
        except LookupError:
            request_context = None
        return Context(request_context=request_context, fastmcp=self)

    # -- What authors register

    def tool(
        self,
        name: str | None = None,
        title: str | None = None,
        description: str | None = None,
        annotations: types.ToolAnnotations | None = None,
        icons: list[types.Icon] | None = None,
        meta: dict[str, Any] | None = None,
        structured_output: bool | None = None,
    ) -> Callable[[F], F]:
        """Register a function as a tool."""
        _require_call("tool", name)

        def decorator(function: F) -> F:
            self.add_tool(function, name, title, description, annotations, icons, meta, structured_output)
            return function

        return decorator

    def add_tool(
        self,
        fn: Callable[..., Any],
        name: str | None = None,
        title: str | None = None,
        description: str | None = None,
        annotations: types.ToolAnnotations | None = None,
        icons: list[types.Icon] | None = None,
        meta: dict[str, Any] | None = None,
        structured_output: bool | None = None,
    ) -> None:
        """Add a function as a tool."""
        self._tool_manager.add_tool(
            fn,
            name=name,
            title=title,
            description=description,
            annotations=annotations,
            icons=icons,
            meta=meta,
            structured_output=structured_output,
        )

    def remove_tool(self, name: str) -> None:
        """Remove a tool."""
        self._tool_manager.remove_tool(name)

    def resource(
        self, uri: str, *, name: str | None = None, description: str | None = None, **described: Any
    ) -> Callable[[F], F]:
        """Register a function as a resource, or as a template if its URI or the function has parameters."""
        _require_call("resource", uri, "'uri'")

        def decorator(function: F) -> F:
            parameters = set(inspect.signature(function).parameters)
            if not parameters and not ("{" in uri and "}" in uri):
                resource = FunctionResource.from_function(function, uri, name, description=description, **described)
                assert isinstance(resource, Resource)
                self.add_resource(resource)
                return function
            parameters -= {_context_parameter(function)}
            in_uri = set(re.findall(r"{(\w+)}", uri))
            if in_uri != parameters:
                raise ValueError(f"Mismatch between URI parameters {in_uri} and function parameters {parameters}")
            self._resource_manager.add_template(function, uri, name=name, description=description, **described)
            return function

        return decorator

    def add_resource(self, resource: Any) -> None:
        """Add a resource."""
        self._resource_manager.add_resource(resource)

    def prompt(
        self,
        name: str | None = None,
        title: str | None = None,
        description: str | None = None,
        icons: list[types.Icon] | None = None,
    ) -> Callable[[F], F]:
        """Register a function as a prompt."""
        _require_call("prompt", name)

        def decorator(function: F) -> F:
            prompt = Prompt.from_function(function, name, title, description, icons)
            assert isinstance(prompt, Prompt)
            self.add_prompt(prompt)
            return function

        return decorator

    def add_prompt(self, prompt: Prompt) -> None:
        """Add a prompt."""
        self._prompt_manager.add_prompt(prompt)

    def completion(self) -> Callable[[F], F]:
        """Register `(ref, argument, context) -> Completion | None`."""
        return self._mcp_server.completion()

    def custom_route(
        self, path: str, methods: list[str], name: str | None = None, include_in_schema: bool = True
    ) -> Callable[[F], F]:
        """Register a page of the author's own. The host does not serve it."""

        def decorator(function: F) -> F:
            self._custom_starlette_routes.append(Route(path, function, methods=methods, name=name))
            return function

        return decorator

    # -- What clients ask for; modules may call these as well

    async def list_tools(self) -> list[types.Tool]:
        """List the tools as the protocol does."""
        return [
            types.Tool(
                name=tool.name,
                title=tool.title,
                description=tool.description,
                input_schema=tool.parameters,
                output_schema=tool.output_schema,
                annotations=tool.annotations,
                icons=tool.icons,
                _meta=tool.meta,
            )
            for tool in self._tool_manager.list_tools()
        ]

    async def call_tool(self, name: str, arguments: dict[str, Any]) -> Any:
        """Call a tool. Returns content, or content and structured content, or a `CallToolResult`."""
        return await self._tool_manager.call_tool(name, arguments, self.get_context(), convert_result=True)

    async def list_resources(self) -> list[types.Resource]:
        """List the resources as the protocol does."""
        return [
            types.Resource(
                uri=str(resource.uri),
                name=resource.name or "",
                title=resource.title,
                description=resource.description,
                mime_type=resource.mime_type,
                icons=resource.icons,
                annotations=resource.annotations,
                _meta=resource.meta,
            )
            for resource in self._resource_manager.list_resources()
        ]

    async def list_resource_templates(self) -> list[types.ResourceTemplate]:
        """List the templates as the protocol does."""
        return [
            types.ResourceTemplate(
                uri_template=template.uri_template,
                name=template.name,
                title=template.title,
                description=template.description,
                mime_type=template.mime_type,
                icons=template.icons,
                annotations=template.annotations,
                _meta=template.meta,
            )
            for template in self._resource_manager.list_templates()
        ]

    async def read_resource(self, uri: Any) -> Iterable[ReadResourceContents]:
        """Read a resource. Raises ValueError or ResourceError with the text of whatever went wrong."""
        resource = await self._resource_manager.get_resource(uri, self.get_context())
        try:
            content: Any = await resource.read()
        except Exception as error:
            raise ResourceError(str(error)) from error
        return [ReadResourceContents(content=content, mime_type=resource.mime_type, meta=resource.meta)]

    async def list_prompts(self) -> list[types.Prompt]:
        """List the prompts as the protocol does."""
        return [
            types.Prompt(
                name=prompt.name,
                title=prompt.title,
                description=prompt.description,
                arguments=[
                    types.PromptArgument(
                        name=argument.name, description=argument.description, required=argument.required
                    )
                    for argument in prompt.arguments or ()
                ],
                icons=prompt.icons,
            )
            for prompt in self._prompt_manager.list_prompts()
        ]

    async def get_prompt(self, name: str, arguments: dict[str, Any] | None = None) -> types.GetPromptResult:
        """Return the messages of a prompt. Raises ValueError with the text of whatever went wrong."""
        prompt = self._prompt_manager.get_prompt(name)
        if prompt is None:
            raise ValueError(f"Unknown prompt: {name}")
        messages = await prompt.render(arguments, self.get_context())
        return types.GetPromptResult(
            description=prompt.description,
            messages=[types.PromptMessage(role=message.role, content=message.content) for message in messages],
        )

    def _register_handlers(self) -> None:
        server = self._mcp_server
        server.list_tools()(self.list_tools)
        server.call_tool()(self.call_tool)
        server.list_resources()(self.list_resources)
        server.read_resource()(self.read_resource)
        server.list_prompts()(self.list_prompts)
        server.get_prompt()(self.get_prompt)
        server.list_resource_templates()(self.list_resource_templates)

    # -- Serving, which is the host's

    def run(self, transport: str = "stdio", mount_path: str | None = None) -> None:
        """Do nothing: the host serves this server."""
        logger.warning("run() of server %r does nothing: the host serves it", self.name)

    async def run_stdio_async(self) -> None:
        """Do nothing: the host serves this server."""
        self.run()

    async def run_sse_async(self, mount_path: str | None = None) -> None:
        """Do nothing: the host serves this server."""
        self.run()

    async def run_streamable_http_async(self) -> None:
        """Do nothing: the host serves this server."""
        self.run()

    def sse_app(self, mount_path: str | None = None) -> Starlette:
        """Return an application with the author's own pages. The host serves the protocol."""
        return Starlette(routes=self._custom_starlette_routes)

    def streamable_http_app(self) -> Starlette:
        """Return an application with the author's own pages. The host serves the protocol."""
        return Starlette(routes=self._custom_starlette_routes)


def _require_call(decorator: str, first_argument: object, argument: str = "") -> None:
    if callable(first_argument):
        raise TypeError(
            f"The @{decorator} decorator was used incorrectly. "
            f"Did you forget to call it? Use @{decorator}({argument}) instead of @{decorator}"
        )


def _context_parameter(function: Callable[..., Any]) -> str | None:
    from mcp.server.mcpserver.utilities.context_injection import find_context_parameter

    return find_context_parameter(function)
