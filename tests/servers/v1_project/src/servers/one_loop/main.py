"""Everything here relies on one event loop for the lifespan and all handlers, whoever calls."""

import asyncio
from contextlib import asynccontextmanager
from contextvars import ContextVar

import httpx
from mcp.server import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.types import TextContent, Tool

LOCK = asyncio.Lock()
SEMAPHORE = asyncio.Semaphore(2)
TENANT = ContextVar("TENANT", default="nobody")

waiting = []  # one user who waits for another one
background = {}


class Upstream:
    """A web server, and the client that all users share."""

    def __init__(self):
        self.users = 0
        self.server = None
        self.client = None
        self.connections = 0

    async def get(self):
        async with LOCK:
            if self.server is None:
                self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
                port = self.server.sockets[0].getsockname()[1]
                limits = httpx.Limits(keepalive_expiry=None)
                self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, trust_env=False)
        response = await self.client.get("/")
        return response.text

    async def serve(self, reader, writer):
        self.connections += 1
        number = self.connections
        try:
            while await reader.readline():
                while (await reader.readline()).strip():
                    pass
                body = f"on connection {number}".encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()
        finally:
            writer.close()

    async def close(self):
        if self.server is not None:
            await self.client.aclose()
            self.server.close()
            self.server = None


upstream = Upstream()


@asynccontextmanager
async def lifespan(server):
    jobs = asyncio.Queue()

    async def work():
        while True:
            number, done = await jobs.get()
            await asyncio.sleep(0.001)
            done.set_result(number * 2)

    worker = asyncio.create_task(work())
    TENANT.set(f"tenant of {server.user_id}")
    upstream.users += 1
    try:
        yield {"jobs": jobs, "loop": asyncio.get_running_loop()}
    finally:
        worker.cancel()
        upstream.users -= 1
        if not upstream.users:
            await upstream.close()


async def share_lock(server, arguments):
    async with LOCK:
        await asyncio.sleep(0.003)
    return "worked"


async def share_semaphore(server, arguments):
    async with SEMAPHORE:
        await asyncio.sleep(0.001)
    return "worked"


async def double(server, arguments):
    done = asyncio.get_running_loop().create_future()
    await server.request_context.lifespan_context["jobs"].put((arguments["number"], done))
    return str(await asyncio.wait_for(done, 5))


async def fetch(server, arguments):
    return await upstream.get()


async def loops(server, arguments):
    loop = asyncio.get_running_loop()
    return f"{loop is server.request_context.lifespan_context['loop']}, {loop is server.made_on}"


async def tenant(server, arguments):
    before = TENANT.get()
    TENANT.set("changed by a call")
    return before


async def meet(server, arguments):
    if not waiting:
        waiting.append((server.user_id, asyncio.get_running_loop().create_future()))
        return await asyncio.wait_for(waiting[0][1], 5)
    other, met = waiting.pop()
    met.set_result(f"{other} met {server.user_id}")
    return f"{server.user_id} met {other}"


async def start(server, arguments):
    async def count():
        for _ in range(3):
            await asyncio.sleep(0.001)
        return 3

    background[server.user_id] = asyncio.create_task(count())
    return "started"


async def join(server, arguments):
    return f"{await background.pop(arguments['user'])} counted"


async def group(server, arguments):
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        made = [tasks.create_task(double(server, {"number": number})) for number in range(3)]
    return " ".join(task.result() for task in made)


TOOLS = {
    function.__name__: function
    for function in (share_lock, share_semaphore, double, fetch, loops, tenant, meet, start, join, group)
}


def create_server(user_id, api_key=None):
    server = Server("one-loop", lifespan=lifespan)
    server.user_id = user_id
    server.made_on = asyncio.get_running_loop()

    @server.list_tools()
    async def list_tools():
        return [Tool(name=name, inputSchema={"type": "object"}) for name in TOOLS]

    @server.call_tool()
    async def call_tool(name, arguments):
        return [TextContent(type="text", text=await TOOLS[name](server, arguments))]

    return server


server = create_server


def get_initialization_options(server_instance):
    return InitializationOptions(
        server_name="one-loop",
        server_version="1.0.0",
        capabilities=server_instance.get_capabilities(NotificationOptions(), {}),
    )
