"""The `Server` object of a command or a URL: it passes every request on to the other side.

The SDK checks requests and shapes results for each era, as it does for any server. What the other side offers is known
from its handshake, so it is started when the object is made.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import mcp_types as types
from mcp.server import Server
from mcp.server.caching import CacheHint
from mcp.server.lowlevel.server import HandlerEntry
from mcp.server.models import InitializationOptions
from mcp.server.subscriptions import ListenHandler
from mcp.shared.exceptions import MCPError
from mcp_types.methods import INPUT_REQUIRED_METHODS, SPEC_CLIENT_METHODS
from pydantic import ValidationError

from gateway.exceptions import InstanceUnavailable
from gateway.upstreams.link import Link
from gateway.upstreams.placeholders import Caller
from gateway.upstreams.questions import Call, Context, connection_of, is_modern
from gateway.upstreams.supply import Holder, Supply

LINGER_SECONDS: Final = 5.0
"""How long a started link waits for the lifespan of the object that was made for it."""

REPORT_SECONDS: Final = 5.0
"""How long a result waits for the progress that came before it."""

_RESERVED_META: Final = "io.modelcontextprotocol/"
"""`_meta` keys with this prefix concern the client's own connection and are not passed on."""

MAX_INPUT_ROUNDS: Final = 20
"""How often a remote server of 2026-07-28 may ask for input within one call."""

_STALE: Final = CacheHint(ttl_ms=0, scope="private")
"""Results of older servers say nothing about caching, so they must not be cached."""

_PARAMS: Final[dict[str, type[types.RequestParams]]] = {
    "tools/list": types.PaginatedRequestParams,
    "tools/call": types.CallToolRequestParams,
    "resources/list": types.PaginatedRequestParams,
    "resources/templates/list": types.PaginatedRequestParams,
    "resources/read": types.ReadResourceRequestParams,
    "prompts/list": types.PaginatedRequestParams,
    "prompts/get": types.GetPromptRequestParams,
    "completion/complete": types.CompleteRequestParams,
}

_OFFERED_BY: Final = {
    "tools": ("tools/list", "tools/call"),
    "resources": ("resources/list", "resources/templates/list", "resources/read"),
    "prompts": ("prompts/list", "prompts/get"),
    "completions": ("completion/complete",),
}
"""Capability -> the methods that a server with it answers."""


class RelayServer(Server[Any]):
    """A low-level server whose handlers are somewhere else."""

    def __init__(self, supply: Supply, caller: Caller, holder: Holder) -> None:
        """`holder` has been started."""
        described = holder.server
        info = described.get("serverInfo") or {}
        super().__init__(
            str(info.get("name") or supply.server_name),
            version=str(info.get("version") or ""),
            instructions=described.get("instructions"),
            lifespan=self._live,
            cache_hints={
                "tools/list": _STALE,
                "prompts/list": _STALE,
                "resources/list": _STALE,
                "resources/templates/list": _STALE,
                "resources/read": _STALE,
            },
        )
        self._supply = supply
        self._caller = caller
        self._holder = holder
        self._first_connection: object = None
        self._of_connections: dict[object, Holder] = {}
        self._described = described
        self._capabilities = _capabilities(described.get("capabilities"))
        self._listen = ListenHandler(holder.questions.bus)
        self._register()

    @asynccontextmanager
    async def _live(self, _: Server[Any]) -> AsyncIterator[dict[str, Any]]:
        held = self._supply.hold(self._caller)
        self._holder = held
        try:
            yield {}
        finally:
            await held.release()

    def _register(self) -> None:
        offered = self._capabilities
        for capability, methods in _OFFERED_BY.items():
            if getattr(offered, capability, None) is not None:
                for method in methods:
                    self.add_request_handler(method, _PARAMS[method], self._forward)
        if offered.resources is not None and offered.resources.subscribe:
            self.add_request_handler("resources/subscribe", types.SubscribeRequestParams, self._subscribe)
            self.add_request_handler("resources/unsubscribe", types.UnsubscribeRequestParams, self._unsubscribe)
        if offered.logging is not None:
            self.add_request_handler("logging/setLevel", types.SetLevelRequestParams, self._set_level)
        if offered.tools is not None or offered.prompts is not None or offered.resources is not None:
            self.add_request_handler(
                "subscriptions/listen", types.SubscriptionsListenRequestParams, self._listen_for_changes
            )
        self.add_notification_handler("notifications/initialized", types.NotificationParams, self._note_session)
        self.add_notification_handler("notifications/roots/list_changed", types.NotificationParams, self._notify)

    def get_request_handler(self, method: str) -> HandlerEntry[Any] | None:
        """The handler of a method. What the protocol does not know is passed on as well."""
        entry = super().get_request_handler(method)
        if entry is None and method not in SPEC_CLIENT_METHODS:
            return HandlerEntry(types.RequestParams, self._forward)
        return entry

    def get_capabilities(self, *args: Any, **kwargs: Any) -> types.ServerCapabilities:
        """What the other side offers."""
        return self._capabilities

    def options(self) -> InitializationOptions:
        """What clients of the handshake era are told of the server."""
        info = self._described.get("serverInfo") or {}
        return InitializationOptions(
            server_name=self.name,
            server_version=self.version,
            title=info.get("title"),
            description=info.get("description"),
            capabilities=self._capabilities,
            instructions=self._described.get("instructions"),
            website_url=info.get("websiteUrl"),
        )

    # -- Requests ----------------------------------------------------------------------------------------------------

    async def _forward(self, ctx: Context, _: Any) -> dict[str, Any]:
        """Pass a request on and return its result.

        Raises:
            MCPError: the other side's own error, or one that says that it has gone.
        """
        holder = self._holder_of(ctx)
        link = await _linked(holder)
        holder.questions.see(ctx, self._caller)
        call = Call(ctx, self._caller)
        holder.questions.calls[call] = None
        try:
            if is_modern(ctx) and ctx.method in INPUT_REQUIRED_METHODS and not link.is_modern:
                return await self._forward_parked(holder, link, call)
            result = await _request(holder, link, ctx.method, _passed_on(ctx.params, keeps_state=link.is_modern), call)
            if link.is_modern and not is_modern(ctx):
                return await self._give_input(holder, link, call, result)
            return _completed(ctx, result)
        finally:
            # A parked call goes on without its request, and questions still are for it.
            if call.parked is None or call.parked.result.done():
                holder.questions.calls.pop(call, None)
            holder.note_idle()

    async def _forward_parked(self, holder: Holder, link: Link, call: Call) -> dict[str, Any]:
        ctx, questions = call.ctx, holder.questions
        params = ctx.params or {}
        if params.get("requestState") is not None:
            parked = questions.find_parked(params["requestState"], ctx, self._caller)
            # The request that brings the input stands for the call from now on.
            del questions.calls[call]
            parked.resume(params.get("inputResponses") or {})
        else:
            task = asyncio.ensure_future(_request(holder, link, ctx.method, _passed_on(params), call))
            parked = questions.park(call, task)
            task.add_done_callback(lambda _: questions.calls.pop(call, None))
            task.add_done_callback(lambda _: holder.note_idle())
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            return _completed(ctx, await parked.next_answer())
        except asyncio.CancelledError:
            if not parked.result.done():
                parked.result.cancel()
            raise

    async def _give_input(self, holder: Holder, link: Link, call: Call, result: dict[str, Any]) -> dict[str, Any]:
        """Ask a client of the handshake era what a server of 2026-07-28 needs to know, until it has its result."""
        for _ in range(MAX_INPUT_ROUNDS):
            if result.get("resultType") != "input_required":
                return result
            responses: dict[str, Any] = {}
            for key, asked in (result.get("inputRequests") or {}).items():
                responses[key] = await holder.questions.answer(asked.get("method", ""), asked.get("params"))
            params = dict(_passed_on(call.ctx.params))
            params["inputResponses"] = responses
            if result.get("requestState") is not None:
                params["requestState"] = result["requestState"]
            result = await _request(holder, link, call.ctx.method, params, call)
        raise MCPError(code=types.INTERNAL_ERROR, message="The server asked for input too often.")

    async def _subscribe(self, ctx: Context, params: types.SubscribeRequestParams) -> dict[str, Any]:
        holder = self._holder_of(ctx)
        link = await _linked(holder)
        holder.questions.see(ctx, self._caller)
        if holder.questions.subscribe(ctx, str(params.uri)):
            return await _request(holder, link, ctx.method, _passed_on(ctx.params), None)
        return {}

    async def _unsubscribe(self, ctx: Context, params: types.UnsubscribeRequestParams) -> dict[str, Any]:
        holder = self._holder_of(ctx)
        if holder.questions.unsubscribe(ctx, str(params.uri)):
            link = await _linked(holder)
            return await _request(holder, link, ctx.method, _passed_on(ctx.params), None)
        return {}

    async def _set_level(self, ctx: Context, params: types.SetLevelRequestParams) -> dict[str, Any]:
        holder = self._holder_of(ctx)
        holder.note_log_level(params.level)
        return await _request(holder, await _linked(holder), ctx.method, _passed_on(ctx.params), None)

    async def _listen_for_changes(
        self, ctx: Context, params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        link = await _linked(self._holder)
        subscribes = self._capabilities.resources is not None and self._capabilities.resources.subscribe
        for uri in params.notifications.resource_subscriptions or () if subscribes else ():
            await _request(self._holder, link, "resources/subscribe", {"uri": uri}, None)
        return await self._listen(ctx, params)

    async def _note_session(self, ctx: Context, _: Any) -> None:
        self._holder_of(ctx).questions.see(ctx, self._caller)

    async def _notify(self, ctx: Context, _: Any) -> None:
        holder = self._holder_of(ctx)
        if holder.is_open:
            await (await holder.link()).notify(ctx.method, None)

    # -- Who has which link ------------------------------------------------------------------------------------------

    def _holder_of(self, ctx: Context) -> Holder:
        """The link of a request: its session's, where each has one of its own."""
        connection = connection_of(ctx)
        if self._supply.manifest.per != "session" or connection is None or is_modern(ctx):
            return self._holder
        if self._first_connection is None:
            # The link that was started to learn what the server offers.
            self._first_connection = connection
        if connection is self._first_connection:
            return self._holder
        holder = self._of_connections.get(connection)
        if holder is None:
            holder = self._of_connections[connection] = self._supply.hold(self._caller, connection)
            connection.exit_stack.push_async_callback(self._release, connection)
        return holder

    async def _release(self, connection: object) -> None:
        holder = self._of_connections.pop(connection, None)
        if holder is not None:
            await holder.release()


def relay_factory(supply: Supply) -> Callable[[str, str | None], Awaitable[RelayServer]]:
    """A server factory, as a module's `server` would be, for a manifest."""

    async def server(user_id: str, api_key: str | None = None) -> RelayServer:
        caller = Caller(user_id, api_key)
        holder = supply.hold(caller)
        try:
            await holder.link()
            return RelayServer(supply, caller, holder)
        finally:
            # From here on the object's lifespan holds the link. If it is never entered, because the caller has given
            # up, the link ends a while later.
            await holder.release(LINGER_SECONDS)

    return server


def relay_options(instance: RelayServer) -> InitializationOptions:
    """What a module's `get_initialization_options` would return."""
    return instance.options()


async def _linked(holder: Holder) -> Link:
    """A holder's link. Raises `MCPError` where it cannot be started."""
    try:
        return await holder.link()
    except InstanceUnavailable as error:
        raise MCPError(code=types.INTERNAL_ERROR, message=str(error)) from None


class _Progress:
    """The progress of one call. Each report is a task of the SDK's; the result must not overtake one."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._reports: set[asyncio.Task[Any]] = set()

    async def report(self, progress: float, total: float | None, message: str | None) -> None:
        """Tell the client."""
        task = asyncio.current_task()
        assert task is not None
        self._reports.add(task)
        try:
            await self._call.ctx.session.report_progress(progress, total, message)
        finally:
            self._reports.discard(task)

    async def settle(self) -> None:
        """Wait for the reports that are under way."""
        if self._reports:
            await asyncio.wait(self._reports, timeout=REPORT_SECONDS)


async def _request(
    holder: Holder, link: Link, method: str, params: Mapping[str, Any] | None, call: Call | None
) -> dict[str, Any]:
    """One request to the other side. Raises `MCPError` with a message that says whose fault it is."""

    progress = None if call is None else _Progress(call)
    try:
        result = await link.request(method, params, None if progress is None else progress.report)
        if progress is not None:
            await progress.settle()
        return result
    except MCPError as error:
        if error.error.code == types.CONNECTION_CLOSED:
            raise MCPError(
                code=types.INTERNAL_ERROR,
                message="The server's process or connection ended during this request. The next one starts it again.",
            ) from None
        if (sentence := holder.fault.sentence()) is not None:
            raise MCPError(code=types.INTERNAL_ERROR, message=sentence) from None
        raise


def _passed_on(params: Mapping[str, Any] | None, *, keeps_state: bool = False) -> dict[str, Any]:
    """A request's parameters without what belongs to the conversation with the client."""
    left_out = () if keeps_state else ("inputResponses", "requestState")
    passed = {key: value for key, value in (params or {}).items() if key not in left_out}
    meta = passed.get("_meta")
    if isinstance(meta, Mapping):
        passed["_meta"] = {
            key: value for key, value in meta.items() if not key.startswith(_RESERVED_META) and key != "progressToken"
        }
        if not passed["_meta"]:
            del passed["_meta"]
    return passed


def _completed(ctx: Context, result: dict[str, Any]) -> dict[str, Any]:
    """A result with what 2026-07-28 requires of one and older servers do not say."""
    return result if "resultType" in result or not is_modern(ctx) else {**result, "resultType": "complete"}


def _capabilities(described: object) -> types.ServerCapabilities:
    try:
        return types.ServerCapabilities.model_validate(described or {}, by_name=False)
    except ValidationError:
        return types.ServerCapabilities()
