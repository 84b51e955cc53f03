"""Sixty generated version 1 modules: how long they take to load, and what memory each of them takes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.evidence.hosts import fresh_host
from tests.support.processes import ROOT, environment

MODULES = 60
TOOLS = 13
"""As many as the real ones have on average (845 tools in 67)."""

HEAD = """
import logging
import os
import sys

project_root = os.path.abspath(os.path.join(os.path.dirname(__file__), "../../.."))
sys.path.insert(0, project_root)
sys.path.insert(0, os.path.join(project_root, "src"))

from mcp.server import NotificationOptions, Server
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.models import InitializationOptions
from mcp.types import AnyUrl, Resource, TextContent, Tool
from src.auth.factory import create_auth_client

logging.basicConfig(level=logging.INFO, format="%(asctime)s - %(name)s - %(levelname)s - %(message)s")
logger = logging.getLogger("service-{number}")


def create_server(user_id, api_key=None):
    server = Server("service-{number}")
    server.user_id = user_id
    server.api_key = api_key

    @server.list_resources()
    async def handle_list_resources(cursor=None):
        return [Resource(uri="service://thing", mimeType="text/plain", name="thing", hasChildren=False)]

    @server.read_resource()
    async def handle_read_resource(uri: AnyUrl):
        return [ReadResourceContents(content=str(uri), mime_type="text/plain")]

    @server.list_tools()
    async def handle_list_tools():
        return [
"""

TOOL = """            Tool(
                name="action_{tool}",
                description="Does the action number {tool} of the service number {number}",
                inputSchema={{
                    "type": "object",
                    "properties": {{
                        "name": {{"type": "string", "description": "What it is called"}},
                        "limit": {{"type": "integer", "description": "How many at most", "default": 10}},
                        "labels": {{"type": "array", "items": {{"type": "string"}}}},
                    }},
                    "required": ["name"],
                }},
                outputSchema={{"type": "array", "items": {{"type": "string"}}, "examples": [["a", "b"]]}},
                requiredScopes=["service.read"],
            ),
"""

MIDDLE = """        ]

    @server.call_tool()
    async def handle_call_tool(name, arguments):
        credentials = create_auth_client(api_key=server.api_key).get_user_credentials("service", server.user_id)
        arguments = arguments or {{}}
"""

ACTION = """        if name == "action_{tool}":
            items = [{{"name": arguments["name"], "number": number}} for number in range(arguments.get("limit", 3))]
            lines = [f"{{item['number']}}: {{item['name']}} of {number}.{tool}" for item in items]
            logger.info("%d items for %s", len(items), server.user_id)
            return [TextContent(type="text", text="\\n".join(lines) or credentials["token"])]
"""

TAIL = """        raise ValueError(f"Unknown tool: {{name}}")

    return server


server = create_server


def get_initialization_options(server_instance):
    return InitializationOptions(
        server_name="service-{number}",
        server_version="1.0.0",
        capabilities=server_instance.get_capabilities(
            notification_options=NotificationOptions(), experimental_capabilities={{}}
        ),
    )
"""

AUTH = """
class AuthClient:
    def get_user_credentials(self, service_name, user_id):
        return {"token": f"{service_name} token of {user_id}"}

def create_auth_client(api_key=None):
    return AuthClient()
"""

MEASURE = """
import gc, json, sys, time
import django; django.setup()
import psutil
from pathlib import Path
from gateway.catalog.discovery import discover
process, servers = psutil.Process(), Path(sys.argv[1])
def kib():
    gc.collect()
    return process.memory_full_info().uss / 1024
# One first: what all of them share is not charged to each.
first = discover([servers.parent / "first"])
before, began = kib(), time.perf_counter()
found = discover([servers])
seconds = time.perf_counter() - began
after = kib()
print(json.dumps([len(found.definitions), seconds, (after - before) / len(found.definitions), len(first.definitions)]))
"""


def write_project(root: Path) -> Path:
    """Generate the modules, and one more to warm up with; return the directory of the sixty."""
    for number in range(MODULES + 1):
        folder = root / "src" / ("servers" if number else "first") / f"service-{number}"
        folder.mkdir(parents=True)
        parts = [HEAD.replace("{number}", str(number))]
        parts += [TOOL.format(number=number, tool=tool) for tool in range(TOOLS)]
        parts += [MIDDLE.format()]
        parts += [ACTION.format(number=number, tool=tool) for tool in range(TOOLS)]
        parts += [TAIL.format(number=number)]
        (folder / "main.py").write_text("".join(parts))
    (root / "src" / "auth").mkdir()
    (root / "src" / "auth" / "factory.py").write_text(AUTH)
    return root / "src" / "servers"


def run(asgi_server: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="gumcp-sixty-") as folder:
        servers = write_project(Path(folder))
        does_hold = True
        for occasion in ("first time", "with bytecode"):
            done = subprocess.run(
                [sys.executable, "-c", MEASURE, str(servers)],
                cwd=ROOT,
                env={
                    **environment(Path(folder), GUMCP_SERVER_DIRS=str(Path(folder) / "none")),
                    "DJANGO_SETTINGS_MODULE": "gumcp_site.settings",
                },
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            if done.returncode != 0:
                print(done.stderr)
                return False
            count, seconds, kib, _ = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{occasion}: {count} modules of {TOOLS} tools in {seconds:.2f} s "
                f"({seconds / count * 1000:.1f} ms each), {kib:.0f} KiB each"
            )
            does_hold &= count == MODULES
        began = time.monotonic()
        with fresh_host(asgi_server, server_dirs=str(servers)) as host:
            healthy = time.monotonic() - began
            served = len(host.request("GET", "/health_check").json["servers"])
            with host.session(f"service-{MODULES}", "maria:key") as stream:
                lines = stream.call("action_3", name="thing", limit=2).splitlines()
            print(f"{asgi_server}: {served} of them served {healthy:.1f} s after the start, database included")
        return does_hold and served == MODULES and lines == [f"{n}: thing of {MODULES}.3" for n in range(2)]
