"""time: the time in a time zone, and the conversion of a time to another zone.

Time zones have their IANA names (`Europe/Berlin`, `UTC`). The rules come from the machine's time zone database, or from
the `tzdata` package if the machine has none. They include every past and announced change of a zone's clocks.

The server keeps nothing about its users, so the factory ignores who is calling. Each result has a text for people and
older clients, and structured content that follows the tool's output schema.
"""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from mcp import types
from mcp.server import Server, ServerRequestContext
from mcp.server.models import InitializationOptions

TIME_FORMATS = ("%H:%M", "%H:%M:%S")
DATE_TIME_FORMATS = ("%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S")

MOMENT_SCHEMA = {
    "type": "object",
    "properties": {
        "timezone": {"type": "string", "description": "IANA name of the zone"},
        "datetime": {"type": "string", "description": "Local date and time with offset, ISO 8601"},
        "utc_offset": {"type": "string", "description": "Offset from UTC, such as +05:30"},
        "is_dst": {"type": "boolean", "description": "Whether daylight saving time is in force"},
    },
    "required": ["timezone", "datetime", "utc_offset", "is_dst"],
}

CONVERSION_SCHEMA = {
    "type": "object",
    "properties": {
        "source": MOMENT_SCHEMA,
        "target": MOMENT_SCHEMA,
        "time_difference": {"type": "string", "description": "How far the target's clock is ahead, such as -05:00"},
        "is_ambiguous": {
            "type": "boolean",
            "description": "The source's clock shows this time twice that day; the earlier one was taken",
        },
    },
    "required": ["source", "target", "time_difference", "is_ambiguous"],
}


def zone_schema(purpose: str) -> dict[str, Any]:
    return {"type": "string", "default": "UTC", "description": f"{purpose}, by its IANA name, such as America/New_York"}


TOOLS = [
    types.Tool(
        name="get_current_time",
        description="Get the current date and time in a time zone",
        input_schema={"type": "object", "properties": {"timezone": zone_schema("Time zone")}},
        output_schema=MOMENT_SCHEMA,
        annotations=types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
    ),
    types.Tool(
        name="convert_time",
        description="Convert a local time of one time zone to another time zone",
        input_schema={
            "type": "object",
            "properties": {
                "source_timezone": zone_schema("Time zone of the given time"),
                "time": {
                    "type": "string",
                    "description": "Local time: HH:MM for today, or with a date as YYYY-MM-DDTHH:MM; 24-hour clock",
                },
                "target_timezone": zone_schema("Time zone to convert to"),
            },
            "required": ["time"],
        },
        output_schema=CONVERSION_SCHEMA,
        annotations=types.ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False),
    ),
]


class ToolFailure(Exception):
    """The call cannot be carried out. The message is for the model, which may correct itself and try again."""


def server(user_id: str, api_key: str | None = None) -> Server[dict[str, Any]]:
    """Make an instance. Time is the same for everybody: `user_id` and `api_key` are not used."""
    return Server("time", version="1.0.0", on_list_tools=list_tools, on_call_tool=call_tool)


def get_initialization_options(instance: Server[dict[str, Any]]) -> InitializationOptions:
    return instance.create_initialization_options()


async def list_tools(ctx: ServerRequestContext, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
    return types.ListToolsResult(tools=TOOLS)


async def call_tool(ctx: ServerRequestContext, params: types.CallToolRequestParams) -> types.CallToolResult:
    arguments = params.arguments or {}
    try:
        match params.name:
            case "get_current_time":
                return current_time(zone_named(arguments, "timezone"))
            case "convert_time":
                return conversion(
                    zone_named(arguments, "source_timezone"),
                    text(arguments, "time"),
                    zone_named(arguments, "target_timezone"),
                )
            case _:
                raise ToolFailure(f"Unknown tool: {params.name}")
    except ToolFailure as failure:
        return types.CallToolResult(content=[types.TextContent(text=str(failure))], is_error=True)


def current_time(zone: ZoneInfo) -> types.CallToolResult:
    now = datetime.now(zone)
    return types.CallToolResult(content=[types.TextContent(text=told(now, zone))], structured_content=moment(now, zone))


def conversion(source_zone: ZoneInfo, time: str, target_zone: ZoneInfo) -> types.CallToolResult:
    local = parse(time, source_zone)
    try:
        # Through UTC: Python applies the clock changes of both zones only then.
        utc = local.astimezone(UTC)
        if utc.astimezone(source_zone).replace(tzinfo=None) != local.replace(tzinfo=None):
            raise ToolFailure(
                f"{local:%H:%M} does not exist on {local:%Y-%m-%d} in {source_zone.key}: the clocks skip it that day"
            )
        there = utc.astimezone(target_zone)
    except OverflowError:
        raise ToolFailure(f"{time} is outside of the years 1 to 9999 in one of the zones") from None
    ambiguous = offset(local) != offset(local.replace(fold=1))
    difference = offset_text(offset(there) - offset(local))
    answer = f"{told(local, source_zone)} is {told(there, target_zone)}. Time difference: {difference}"
    if ambiguous:
        answer += f". The clocks in {source_zone.key} show this time twice that day; the earlier one was taken"
    return types.CallToolResult(
        content=[types.TextContent(text=answer)],
        structured_content={
            "source": moment(local, source_zone),
            "target": moment(there, target_zone),
            "time_difference": difference,
            "is_ambiguous": ambiguous,
        },
    )


def moment(local: datetime, zone: ZoneInfo) -> dict[str, Any]:
    """Describe a moment as the clocks of `zone` show it, by `MOMENT_SCHEMA`."""
    return {
        "timezone": zone.key,
        "datetime": local.isoformat(timespec="seconds"),
        "utc_offset": offset_text(offset(local)),
        "is_dst": bool(local.dst()),
    }


def told(local: datetime, zone: ZoneInfo) -> str:
    return f"{local.isoformat(timespec='seconds')} {zone.key}{' (daylight saving time)' if local.dst() else ''}"


def parse(time: str, zone: ZoneInfo) -> datetime:
    """Read a local time of `zone`. Without a date it is today's."""
    for date_time_format in DATE_TIME_FORMATS:
        try:
            return datetime.strptime(time, date_time_format).replace(tzinfo=zone)
        except ValueError:
            continue
    for time_format in TIME_FORMATS:
        try:
            clock = datetime.strptime(time, time_format).time()
        except ValueError:
            continue
        return datetime.combine(datetime.now(zone).date(), clock, tzinfo=zone)
    raise ToolFailure(
        f"Invalid time: {time!r}. Use HH:MM, or YYYY-MM-DDTHH:MM, on the 24-hour clock and without offset"
    )


def zone_named(arguments: dict[str, Any], argument: str) -> ZoneInfo:
    name = text(arguments, argument, default="UTC")
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        # KeyError: unknown. ValueError: not a name, such as "../x". OSError: if tzdata is used, the name of a folder
        # ("Europe") or a name that is too long.
        raise ToolFailure(f"Unknown time zone: {name!r}. Use an IANA name such as Europe/Berlin or UTC") from None


def text(arguments: dict[str, Any], name: str, default: str | None = None) -> str:
    """Return a text argument. The SDK does not check arguments against a tool's schema: the tool does."""
    value = arguments.get(name, default)
    if value is None:
        raise ToolFailure(f"Missing argument: {name}")
    if not isinstance(value, str):
        raise ToolFailure(f"Argument '{name}' must be a string")
    return value


def offset(local: datetime) -> timedelta:
    return local.utcoffset() or timedelta()


def offset_text(delta: timedelta) -> str:
    """Write an offset, or the difference of two, as +05:30. Historic offsets may have seconds too."""
    minutes, seconds = divmod(int(abs(delta).total_seconds()), 60)
    sign = "-" if delta < timedelta() else "+"
    return f"{sign}{minutes // 60:02}:{minutes % 60:02}" + (f":{seconds:02}" if seconds else "")
