"""Version 1's resources: constants, files, and functions that are called on the event loop."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable
from typing import Annotated, Any, Self

import anyio.to_thread
import pydantic_core
from mcp.server.mcpserver.resources import base, types
from mcp.server.mcpserver.utilities.context_injection import find_context_parameter, inject_context
from mcp.server.mcpserver.utilities.func_metadata import func_metadata
from mcp_types import Annotations, Icon
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, validate_call

from gateway.compat.loop_threads import explained
from gateway.compat.models import as_url

logger = logging.getLogger(__name__)

_Uri = Annotated[Any, BeforeValidator(lambda uri: as_url(str(uri)))]
"""A URL, in version 1's spelling. Text where it is not a valid URL."""


class Resource(base.Resource):
    """A resource."""

    model_config = ConfigDict(extra="ignore")

    uri: _Uri = Field(default=..., description="URI of the resource")


class TextResource(Resource, types.TextResource):
    """A text."""


class BinaryResource(Resource, types.BinaryResource):
    """Some bytes."""


class FunctionResource(Resource, types.FunctionResource):
    """What a function returns, each time the resource is read."""

    async def read(self) -> str | bytes:
        """Call the function."""
        try:
            result = self.fn()
            if inspect.isawaitable(result):
                result = await result
            if isinstance(result, base.Resource):
                return await result.read()
            if isinstance(result, str | bytes):
                return result
            return pydantic_core.to_json(result, fallback=str, indent=2).decode()
        except Exception as error:
            raise ValueError(f"Error reading resource {self.uri}: {explained(error)}") from error


class FileResource(Resource, types.FileResource):
    """A file: text, or bytes where `is_binary` or the MIME type says so."""

    is_binary: bool = Field(default=False, description="Whether to read the file as bytes")

    async def read(self) -> str | bytes:
        """Read the file."""
        is_binary = self.is_binary or not self.mime_type.startswith("text/")
        try:
            return await anyio.to_thread.run_sync(self.path.read_bytes if is_binary else self.path.read_text)
        except Exception as error:
            raise ValueError(f"Error reading file {self.path}: {error}") from error


class HttpResource(Resource, types.HttpResource):
    """What is at an address."""


class DirectoryResource(Resource, types.DirectoryResource):
    """The names of the files in a folder."""


class ResourceTemplate(BaseModel):
    """Resources with parameters in their URI, each made by a function."""

    uri_template: str
    name: str
    title: str | None = None
    description: str | None
    mime_type: str = "text/plain"
    icons: list[Icon] | None = None
    annotations: Annotations | None = None
    meta: dict[str, Any] | None = None
    fn: Callable[..., Any] = Field(exclude=True)
    parameters: dict[str, Any]
    context_kwarg: str | None = None

    @classmethod
    def from_function(
        cls,
        fn: Callable[..., Any],
        uri_template: str,
        name: str | None = None,
        description: str | None = None,
        mime_type: str | None = None,
        context_kwarg: str | None = None,
        **described: Any,
    ) -> Self:
        """Make a template from a function whose parameters are those of the URI."""
        context_kwarg = context_kwarg or find_context_parameter(fn)
        skipped = [context_kwarg] if context_kwarg is not None else []
        parameters = func_metadata(fn, skip_names=skipped, structured_output=False).arg_model.model_json_schema()
        return cls(
            uri_template=uri_template,
            name=name or fn.__name__,
            description=description or fn.__doc__ or "",
            mime_type=mime_type or "text/plain",
            fn=validate_call(fn),
            parameters=parameters,
            context_kwarg=context_kwarg,
            **described,
        )

    def matches(self, uri: str) -> dict[str, Any] | None:
        """Return the parameters that a URI has; None if it is not of this template. None contains a slash."""
        pattern = self.uri_template.replace("{", "(?P<").replace("}", ">[^/]+)")
        match = re.match(f"^{pattern}$", uri)
        return None if match is None else match.groupdict()

    async def create_resource(self, uri: str, params: dict[str, Any], context: Any = None) -> Resource:
        """Return the resource of a URI. Raises ValueError with the text of whatever went wrong."""
        try:
            result = self.fn(**inject_context(self.fn, params, context, self.context_kwarg))
            if inspect.isawaitable(result):
                result = await result
        except Exception as error:
            raise ValueError(f"Error creating resource from template: {explained(error)}") from error
        return FunctionResource(
            uri=uri,
            name=self.name,
            title=self.title,
            description=self.description,
            mime_type=self.mime_type,
            icons=self.icons,
            annotations=self.annotations,
            meta=self.meta,
            fn=lambda: result,
        )


class ResourceManager:
    """The resources of a server by URI, and its templates."""

    def __init__(self, warn_on_duplicate_resources: bool = True) -> None:
        self.warn_on_duplicate_resources = warn_on_duplicate_resources
        self._resources: dict[str, base.Resource] = {}
        self._templates: dict[str, ResourceTemplate] = {}

    def add_resource(self, resource: base.Resource) -> base.Resource:
        """Add a resource and return it. The first of two resources of one URI stays."""
        if str(resource.uri) in self._resources and self.warn_on_duplicate_resources:
            logger.warning("Resource already exists: %s", resource.uri)
        return self._resources.setdefault(str(resource.uri), resource)

    def add_template(self, fn: Callable[..., Any], uri_template: str, **described: Any) -> ResourceTemplate:
        """Add a function as a template and return it."""
        template = ResourceTemplate.from_function(fn, uri_template, **described)
        self._templates[uri_template] = template
        return template

    async def get_resource(self, uri: Any, context: Any = None) -> base.Resource:
        """Return the resource of a URI. Raises ValueError if there is none, or it could not be made."""
        text = str(uri)
        if (resource := self._resources.get(text)) is not None:
            return resource
        for template in self._templates.values():
            if (params := template.matches(text)) is not None:
                try:
                    return await template.create_resource(text, params, context)
                except ValueError as error:
                    raise ValueError(f"Error creating resource from template: {error}") from error
        raise ValueError(f"Unknown resource: {uri}")

    def list_resources(self) -> list[base.Resource]:
        """Return all resources that have no parameters."""
        return list(self._resources.values())

    def list_templates(self) -> list[ResourceTemplate]:
        """Return all templates."""
        return list(self._templates.values())
