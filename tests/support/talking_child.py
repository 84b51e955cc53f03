"""An MCP server of protocol 2024-11-05 on standard input and output, with a tool for everything that can go wrong.

Standard library only, so that it starts quickly: `python -S talking_child.py [NAME]`.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time

TOOLS = (
    "echo",
    "environment",
    "progress",
    "fail",
    "sample",
    "elicit",
    "roots",
    "impatient",
    "go_on",
    "hang",
    "exit",
    "garbage",
    "long_line",
    "dense",
    "wrong_id",
    "spawn",
    "grow",
    "kill_me",
    "pid",
    "cancelled",
    "log",
    "change",
    "arguments",
    "secret",
    "descriptors",
    "complain",
)
waiting: dict[str, threading.Event] = {}
answers: dict[str, dict] = {}
cancelled: list[object] = []
lock = threading.Lock()
kept = []
go_on, went_on = threading.Event(), threading.Event()


def send(message: dict) -> None:
    with lock:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        sys.stdout.flush()


def ask(method: str, params: dict) -> dict:
    key = f"ask-{len(answers) + len(waiting)}-{time.monotonic_ns()}"
    waiting[key] = threading.Event()
    send({"id": key, "method": method, "params": params})
    waiting[key].wait(30)
    return answers.get(key, {"error": "no answer"})


def text(value: object) -> dict:
    return {"content": [{"type": "text", "text": value if isinstance(value, str) else json.dumps(value)}]}


def call(request_id: object, params: dict) -> dict | None:
    name, arguments = params["name"], params.get("arguments") or {}
    token = (params.get("_meta") or {}).get("progressToken")
    if name == "echo":
        return text(arguments.get("text", ""))
    if name == "environment":
        return text(dict(os.environ))
    if name == "arguments":
        return text([sys.argv[1:], os.getcwd()])
    if name == "descriptors":
        return text(sorted(int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2))
    if name == "complain":
        print(os.path.expandvars(arguments["text"]), file=sys.stderr, flush=True)
        return text("said")
    if name == "secret":
        return text(os.read(3, 4096).decode())
    if name == "progress":
        for step in (1, 2, 3):
            if token is not None:
                params = {"progressToken": token, "progress": step, "total": 3}
                send({"method": "notifications/progress", "params": params})
        return text("done")
    if name == "log":
        send({"method": "notifications/message", "params": {"level": "info", "data": "hello from the child"}})
        return text("logged")
    if name == "change":
        send({"method": "notifications/tools/list_changed"})
        return text("changed")
    if name == "fail":
        return {"content": [{"type": "text", "text": "it failed"}], "isError": True}
    if name == "sample":
        question = {"messages": [{"role": "user", "content": {"type": "text", "text": "?"}}], "maxTokens": 5}
        return text(ask("sampling/createMessage", question))
    if name == "elicit":
        schema = {"type": "object", "properties": {"name": {"type": "string"}}}
        return text(ask("elicitation/create", {"message": "Name?", "requestedSchema": schema}))
    if name == "roots":
        return text(ask("roots/list", {}))
    if name == "impatient":
        threading.Thread(target=ask, args=("roots/list", {}), daemon=True).start()
        go_on.wait(30)
        send({"id": request_id, "result": text("went on")})
        went_on.set()
        return None
    if name == "go_on":
        go_on.set()
        went_on.wait(30)
        return text("gone on")
    if name == "hang":
        time.sleep(float(arguments.get("seconds", 60)))
        return text("late")
    if name == "cancelled":
        return text(cancelled)
    if name == "exit":
        os._exit(int(arguments.get("status", 3)))
    if name == "kill_me":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "pid":
        return text(str(os.getpid()))
    if name == "garbage":
        with lock:
            sys.stdout.write("this is not JSON\n\n{]\n")
            sys.stdout.flush()
        return text("after the garbage")
    if name == "long_line":
        with lock:
            sys.stdout.write("x" * int(arguments["bytes"]))
            sys.stdout.flush()
        return None
    if name == "dense":
        return {"content": [], "values": [[] for _ in range(int(arguments["values"]))]}
    if name == "wrong_id":
        send({"id": 999_999, "result": text("for nobody")})
        return text("for you")
    if name == "spawn":
        program = (
            "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
        )
        grandchild = subprocess.Popen(
            [sys.executable, "-S", "-c", program], stdout=subprocess.PIPE, start_new_session=True
        )
        assert grandchild.stdout is not None
        grandchild.stdout.readline()
        return text(str(grandchild.pid))
    if name == "grow":
        while True:
            kept.append(bytearray(os.urandom(4 * 1024 * 1024)))
    return text(f"no tool {name}")


def handle(message: dict) -> None:
    method, request_id, params = message["method"], message["id"], message.get("params") or {}
    if method == "initialize":
        result = {
            "protocolVersion": "2024-11-05",
            "capabilities": {"tools": {"listChanged": True}, "logging": {}},
            "serverInfo": {"name": "talking-child", "version": "1"},
        }
    elif method == "tools/list":
        result = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS]}
    elif method == "tools/call":
        result = call(request_id, params)
        if result is None:
            return
    elif method in ("ping", "logging/setLevel"):
        result = {}
    else:
        send({"id": request_id, "error": {"code": -32601, "message": "Method not found"}})
        return
    send({"id": request_id, "result": result})


for line in sys.stdin:
    message = json.loads(line)
    if "method" not in message:
        answers[message["id"]] = message.get("result") or {"error": message.get("error")}
        waiting[message["id"]].set()
    elif message["method"] == "notifications/cancelled":
        cancelled.append(message["params"]["requestId"])
    elif "id" in message:
        threading.Thread(target=handle, args=(message,), daemon=True).start()
