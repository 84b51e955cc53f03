"""New code while the host runs: for whom, when, and what does not notice it."""

from __future__ import annotations

import itertools
import shutil
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.admin_site import MAKE_USERS, Admin
from tests.support.changing_servers import ChangingServer
from tests.support.host_process import HostProcess, StartHost
from tests.support.processes import manage, until
from tests.support.streamable import HandshakeSession, StatelessClient
from tests.support.wire import tool_call

both_styles = pytest.mark.parametrize("style", ["version_1", "version_2"])

LIST_CHANGED = {f"notifications/{kind}/list_changed" for kind in ("tools", "prompts", "resources")}


@pytest.fixture(scope="module")
def server_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("changing") / "src" / "servers"
    for style in ("version_1", "version_2"):
        ChangingServer(folder, f"beside-{style}", style).write("steady")
    return folder


@pytest.fixture(scope="module")
def host(start_host: StartHost, server_dir: Path) -> Iterator[HostProcess]:
    with start_host(asgi_server="reload", server_dirs=server_dir) as host:
        made = manage("shell", "--no-imports", "-c", MAKE_USERS, data_dir=host.data_dir)
        assert made.returncode == 0, made.stderr
        until(lambda: "Watching" in host.log())
        yield host


@pytest.fixture(scope="module")
def admin(host: HostProcess) -> Admin:
    return Admin(host, "root")


numbers = itertools.count(1)


@pytest.fixture
def changing(host: HostProcess, server_dir: Path, style: str) -> Iterator[ChangingServer]:
    """A folder that was not there when the host started, served and warm."""
    server = ChangingServer(server_dir, f"changing-{next(numbers)}", style)
    server.write("one")
    until(lambda: is_served(host, server))
    yield server
    shutil.rmtree(server.folder, ignore_errors=True)


def is_served(host: HostProcess, server: ChangingServer) -> bool:
    return server.name in host.request("GET", "/health_check").json["servers"]


def row(host: HostProcess, server: ChangingServer) -> dict[str, object]:
    rows = host.rows("SELECT * FROM records_serverrecord WHERE name = ?", server.name)
    return rows[0] if rows else {}


# -- New code --------------------------------------------------------------------------------------------------------


@both_styles
def test_changed_server_gives_open_sessions_of_every_transport_and_new_ones_its_new_code(
    host: HostProcess, changing: ChangingServer, style: str
) -> None:
    name = changing.name
    client = StatelessClient(host, name, "ada:key")
    beside = (
        f"beside-{'version_1' if 'lifespan=lifespan)' in (changing.folder / 'main.py').read_text() else 'version_2'}"
    )
    with (
        host.session(name, "ada:key") as sse,
        host.session(name, "bob:key") as other_user,
        HandshakeSession(host, name, "ada:key") as streamable,
        streamable.get() as standalone,
        host.session(beside, "ada:key") as neighbour,
        HandshakeSession(host, beside, "ada:key") as other_neighbour,
    ):
        assert [each.call("word") for each in (sse, other_user, streamable, client)] == ["one"] * 4
        sse.send(tool_call("in-flight", "wait", delay=3))
        under_way = streamable.start("wait", delay=3)
        stateless_under_way = client.start("wait", delay=3)
        assert standalone.status == 200
        changing.write("two")
        until(lambda: sse.call("word") == "two", 3)
        until(lambda: other_user.call("word") == "two", 1)
        assert streamable.call("word") == "two"
        assert client.call("word") == "two"
        tools = [tool["name"] for tool in sse.request("tools/list")["result"]["tools"]]
        assert tools == ["word", "wait", "two"]
        with host.session(name, "new:key") as new:
            assert new.call("word") == "two"
        with host.stream(name, "new:key") as new:
            assert new.initialize()["serverInfo"]["version"] == "two"
        # What was under way finishes on the code it began on, with that code's state.
        assert sse.answer("in-flight")["result"]["content"][0]["text"] == "one"
        assert under_way.text() == "one"
        assert stateless_under_way.text() == "one"
        under_way.leave()
        stateless_under_way.leave()

        until(lambda: {note["method"] for note in sse.notifications()} == LIST_CHANGED or not sse.call("word"), 2)
        assert {standalone.message()["method"] for _ in LIST_CHANGED} == LIST_CHANGED
        assert neighbour.call("word") == "steady"
        assert other_neighbour.call("word") == "steady"
        assert neighbour.is_silent()
        assert not neighbour.notifications()


@pytest.mark.parametrize("style", ["version_2"])
def test_clients_that_listen_hear_what_they_asked_for_and_their_stream_ends(
    host: HostProcess, changing: ChangingServer
) -> None:
    client = StatelessClient(host, changing.name, "listener:key")
    wanted = {"notifications": {"toolsListChanged": True}}
    with (
        client.request("subscriptions/listen", wanted, request_id="ear") as listening,
        StatelessClient(host, "beside-version_2", "listener:key").request(
            "subscriptions/listen", wanted, request_id="ear"
        ) as neighbour,
    ):
        assert listening.message()["method"] == "notifications/subscriptions/acknowledged"
        assert neighbour.message()["method"] == "notifications/subscriptions/acknowledged"
        changing.write("two")
        heard = listening.messages()
        assert [message["method"] for message in heard] == ["notifications/tools/list_changed"]
        assert heard[0]["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == "ear"
    assert client.call("word") == "two"
    until(lambda: changing.journal()[-1] == "leave one listener")


@both_styles
def test_changed_twice_within_a_second_at_the_same_size_gives_the_newest_code(
    host: HostProcess, changing: ChangingServer
) -> None:
    with host.session(changing.name, "ada:key") as stream:
        for word in ("two", "six", "ten", "one", "two"):
            changing.write(word)
            until(lambda word=word: stream.call("word") == word, 4)


@both_styles
def test_change_of_a_module_beside_main_is_a_change_of_the_server(
    host: HostProcess, changing: ChangingServer, style: str
) -> None:
    bare = f"bare_words_of_{style}"
    changing.write_text("WORD = 'sibling a'\n", "words.py")
    changing.write_text("WORD = 'bare name a'\n", f"{bare}.py")
    insert = "import os, sys; sys.path.insert(0, os.path.dirname(__file__))"
    imports = f"{insert}; import {bare} as others; from . import words"
    changing.write("two", extra=f"{imports}; WORD = f'{{words.WORD}}, {{others.WORD}}'")
    with host.session(changing.name, "ada:key") as stream:
        until(lambda: "sibling a, bare name a" in stream.call("word"), 4)
        changing.write_text("WORD = 'sibling b'\n", "words.py")
        until(lambda: "sibling b, bare name a" in stream.call("word"), 4)
        changing.write_text("WORD = 'bare name b'\n", f"{bare}.py")
        until(lambda: "sibling b, bare name b" in stream.call("word"), 4)


# Writes files beside itself: when it is loaded, and with every instance.
SCRIBE = """
    from pathlib import Path

    from mcp.server import Server

    HERE = Path(__file__).parent
    with (HERE / "loads.log").open("a") as log:
        log.write("loaded\\n")

    def server(user_id, api_key=None):
        (HERE / "notes").mkdir(exist_ok=True)
        (HERE / "notes" / f"{user_id}.json").write_text("[]")
        return Server("scribe", version="1")

    def get_initialization_options(instance):
        return instance.create_initialization_options()
"""


@pytest.mark.parametrize("style", ["version_2"])
def test_server_that_writes_files_beside_its_code_is_not_reloaded_by_that(
    host: HostProcess, changing: ChangingServer, server_dir: Path
) -> None:
    scribe = ChangingServer(server_dir, "scribe", "version_2")
    loads = scribe.folder / "loads.log"
    scribe.write_text(textwrap.dedent(SCRIBE))
    until(lambda: is_served(host, scribe), 5)
    with host.session(changing.name, "ada:key") as stream:
        for number, word in enumerate(("two", "six", "ten")):
            host.session(scribe.name, f"user-{number}").close()
            # What is written before is seen before.
            changing.write(word)
            until(lambda word=word: stream.call("word") == word, 4)
    assert (scribe.folder / "notes" / "user-2.json").exists()
    assert loads.read_text().splitlines() == ["loaded"]
    scribe.write_text(textwrap.dedent(SCRIBE) + "# edited\n")
    until(lambda: loads.read_text().splitlines() == ["loaded"] * 2, 4)


@pytest.mark.parametrize("style", ["version_2"])
def test_folder_that_is_moved_into_the_place_of_another_is_new_code(
    host: HostProcess, changing: ChangingServer, tmp_path: Path
) -> None:
    newer = ChangingServer(tmp_path, changing.name, "version_2")
    newer.write("two")
    with host.session(changing.name, "ada:key") as stream:
        assert stream.call("word") == "one"
        changing.folder.rename(tmp_path / "old")
        newer.folder.rename(changing.folder)
        until(lambda: stream.call("word") == "two", 4)


@both_styles
def test_lifespan_of_the_old_code_is_left_once_its_calls_are_done(host: HostProcess, changing: ChangingServer) -> None:
    with host.session(changing.name, "ada:key") as stream:
        stream.send(tool_call("in-flight", "wait", delay=2.5))
        assert stream.call("word") == "one"
        changing.write("two")
        until(lambda: stream.call("word") == "two", 4)
        assert changing.journal() == ["enter one ada", "enter two ada"]
        assert stream.answer("in-flight")["result"]["content"][0]["text"] == "one"
        until(lambda: changing.journal() == ["enter one ada", "enter two ada", "leave one ada"], 2)


@both_styles
def test_handler_threads_and_instances_do_not_grow_with_reloads(host: HostProcess, changing: ChangingServer) -> None:
    def threads() -> int:
        return len(list(Path(f"/proc/{host.pid}/task").iterdir()))

    with host.session(changing.name, "ada:key") as stream:
        stream.call("word")
        before = threads()
        for word in ("two", "three", "four", "five"):
            changing.write(word)
            until(lambda word=word: stream.call("word") == word, 4)
        until(lambda: threads() <= before + 2, 3)
        assert host.metric("gumcp_instances", server=changing.name) == 1
        until(lambda: changing.journal()[-1] == "leave four ada", 2)


# -- Code that does not load -----------------------------------------------------------------------------------------


@both_styles
@pytest.mark.parametrize("broken", ["def server(:", "raise RuntimeError('broken <on> purpose')", "nothing = 1"])
def test_broken_change_keeps_the_old_code_and_its_reason_is_in_the_admin(
    host: HostProcess, admin: Admin, changing: ChangingServer, broken: str
) -> None:
    with host.session(changing.name, "ada:key") as stream:
        stream.call("word")
        changing.write_text(broken + "\n")
        until(lambda: row(host, changing).get("reason"), 5)
        found = row(host, changing)
        assert found["status"] == "loaded"
        assert stream.call("word") == "one"
        with host.session(changing.name, "new:key") as new:
            assert new.call("word") == "one"
        page = admin.get(f"/admin/records/serverrecord/{found['id']}/change/")
        if broken.startswith("nothing"):
            assert "main.py has no factory called server" in page
        else:
            assert "Traceback" in page
            assert ("SyntaxError" in page) or ("broken &lt;on&gt; purpose" in page)
        assert not stream.notifications()
        assert host.metric("gumcp_load_failures_servers") >= 1
        changing.write("mended")
        until(lambda: stream.call("word") == "mended", 5)
        until(lambda: not row(host, changing)["reason"], 3)
        assert row(host, changing)["traceback"] == ""


@both_styles
def test_factory_that_fails_for_one_user_keeps_that_users_instance_on_its_old_code(
    host: HostProcess, changing: ChangingServer
) -> None:
    with host.session(changing.name, "unloved:key") as unloved, host.session(changing.name, "ada:key") as ada:
        assert [unloved.call("word"), ada.call("word")] == ["one", "one"]
        changing.write("picky")
        until(lambda: ada.call("word") == "picky", 5)
        assert unloved.call("word") == "one"
        assert unloved.call("wait", delay=0) == "one"
        until(lambda: f"1 instances of {changing.name} stayed on its old code" in host.log())
        with host.session(changing.name, "unloved:key") as again:
            assert again.call("word") == "one"
        assert host.stream(changing.name, "unloved:another-key").refusal().status == 503
        changing.write("kinder")
        until(lambda: unloved.call("word") == "kinder", 5)


# -- Folders ---------------------------------------------------------------------------------------------------------


@both_styles
def test_folder_that_goes_takes_its_sessions_along_and_is_404(host: HostProcess, changing: ChangingServer) -> None:
    with (
        host.session(changing.name, "ada:key") as sse,
        HandshakeSession(host, changing.name, "ada:key") as streamable,
        host.session("beside-version_1", "ada:key") as neighbour,
    ):
        sse.call("word")
        shutil.rmtree(changing.folder)
        sse.wait_closed(5)
        assert host.stream(changing.name, "ada:key").refusal().status == 404
        assert streamable.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}).answer().status == 404
        assert StatelessClient(host, changing.name, "ada:key").start("word").answer().status == 404
        assert not is_served(host, changing)
        until(lambda: row(host, changing)["status"] == "removed", 3)
        until(lambda: changing.journal()[-1] == "leave one ada", 2)
        assert neighbour.call("word") == "steady"
        changing.write("back")
        until(lambda: is_served(host, changing), 5)
        assert StatelessClient(host, changing.name, "ada:key").call("word") == "back"
        until(lambda: row(host, changing)["status"] == "loaded", 3)


@pytest.mark.parametrize("style", ["version_2"])
def test_new_folder_that_is_broken_is_a_row_with_a_reason_until_it_is_mended(
    host: HostProcess, changing: ChangingServer, server_dir: Path
) -> None:
    broken = ChangingServer(server_dir, "born-broken", "version_1")
    broken.write_text("import no_such_module\n")
    until(lambda: row(host, broken).get("status") == "failed", 5)
    assert "no_such_module" in str(row(host, broken)["reason"])
    broken.write("mended")
    until(lambda: is_served(host, broken), 5)
    assert StatelessClient(host, broken.name, "ada:key").call("word") == "mended"


def test_keys_in_the_urls_of_a_new_server_are_in_no_log(host: HostProcess, server_dir: Path) -> None:
    new = ChangingServer(server_dir, "newcomer", "version_2")
    new.write("one")
    until(lambda: is_served(host, new), 5)
    with host.session("newcomer", "canary-without-colon") as stream:
        stream.call("word")
    assert "/newcomer/" in host.log()
    assert "canary-without-colon" not in host.log().replace("session: canary-without-colon", "")


# -- Operators -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unwatched(start_host: StartHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HostProcess, Path]]:
    """A host that does not watch its folders, and the directory that they are in."""
    directory = tmp_path_factory.mktemp("unwatched") / "src" / "servers"
    for name, word in (("edited", "one"), ("beside", "steady")):
        ChangingServer(directory, name, "version_1").write(word)
    with start_host(server_dirs=directory) as host:
        made = manage("shell", "--no-imports", "-c", MAKE_USERS, data_dir=host.data_dir)
        assert made.returncode == 0, made.stderr
        yield host, directory


def test_operator_reloads_a_server_of_a_host_that_does_not_watch(unwatched: tuple[HostProcess, Path]) -> None:
    host, directory = unwatched
    server, beside = (ChangingServer(directory, name, "version_1") for name in ("edited", "beside"))
    admin = Admin(host, "root")
    with host.session("edited", "ada:key") as stream, host.session("beside", "ada:key") as neighbour:
        assert [stream.call("word"), neighbour.call("word")] == ["one", "steady"]
        server.write("two")
        beside.write("changed too")
        fields = {"action": "reload_servers", "_selected_action": str(row(host, server)["id"])}
        assert "1 servers are being reloaded" in admin.post("/admin/records/serverrecord/", fields)
        until(lambda: stream.call("word") == "two", 5)
        assert neighbour.call("word") == "steady"
        server.write_text("raise RuntimeError('no more')\n")
        admin.post("/admin/records/serverrecord/", fields)
        until(lambda: "no more" in str(row(host, server)["traceback"]), 5)
        assert stream.call("word") == "two"


def test_dropped_folder_is_served_without_a_restart_when_an_operator_asks_for_it(
    unwatched: tuple[HostProcess, Path],
) -> None:
    host, directory = unwatched
    first, second = (ChangingServer(directory, name, "version_2") for name in ("first", "second"))
    first.write("one")
    done = manage("reload", data_dir=host.data_dir, GUMCP_SERVER_DIRS=str(directory))
    assert (done.returncode, done.stdout) == (0, "first: served\n"), done.stderr
    assert StatelessClient(host, "first", "ada:key").call("word") == "one"
    second.write("two")
    Admin(host, "root").post("/admin/records/serverrecord/look/", {})
    # The command compares rows, which are written a moment later.
    until(lambda: is_served(host, second) and row(host, second))
    first.write("three")
    done = manage("reload", "first", data_dir=host.data_dir, GUMCP_SERVER_DIRS=str(directory))
    assert (done.returncode, done.stdout) == (0, "first: reloaded\n"), done.stderr
    assert StatelessClient(host, "first", "ada:key").call("word") == "three"
    first.write_text("import store")
    first.write_text("\n1 / 0", name="store.py")
    shutil.rmtree(second.folder)
    done = manage("reload", "first", data_dir=host.data_dir, GUMCP_SERVER_DIRS=str(directory))
    assert done.returncode == 1
    reason = "In store.py, line 2: ZeroDivisionError: division by zero"
    assert done.stdout.splitlines() == [
        f"first: its new code does not load, the old one is still served. {reason}",
        "second: there is no folder of this name with a main.py or server.json",
    ]
    assert StatelessClient(host, "first", "ada:key").call("word") == "three"


# -- Under load ------------------------------------------------------------------------------------------------------


@both_styles
def test_no_call_fails_while_a_server_is_reloaded_under_load(host: HostProcess, changing: ChangingServer) -> None:
    words = ["one", "two", "three", "four"]
    seen: Counter[str] = Counter()
    failures: list[str] = []
    is_over = threading.Event()

    def keep_calling(call: Callable[..., str], *tools: str) -> None:
        for tool in itertools.cycle(tools):
            if is_over.is_set():
                return
            try:
                seen[call(tool, **({"delay": 0.05} if tool == "wait" else {}))] += 1
            except BaseException as error:
                failures.append(repr(error))
                return

    with (
        host.session(changing.name, "sse:key") as sse,
        HandshakeSession(host, changing.name, "http:key") as streamable,
        host.session("beside-version_1", "ada:key") as neighbour,
    ):
        stateless = StatelessClient(host, changing.name, "stateless:key")
        # One thread reads the one stream of an HTTP+SSE session.
        threads = [
            threading.Thread(target=keep_calling, args=(sse.call, "word", "wait")),
            threading.Thread(target=keep_calling, args=(streamable.call, "word")),
            threading.Thread(target=keep_calling, args=(streamable.call, "wait")),
            threading.Thread(target=keep_calling, args=(stateless.call, "word")),
            threading.Thread(target=keep_calling, args=(stateless.call, "wait")),
            threading.Thread(target=keep_calling, args=(neighbour.call, "word")),
        ]
        for thread in threads:
            thread.start()
        try:
            for word in words[1:]:
                changing.write(word)
                until(lambda word=word: seen[word] > 20 or failures, 6)
        finally:
            is_over.set()
            for thread in threads:
                thread.join(10)
    assert not failures
    assert set(seen) == {*words, "steady"}


FAILING = """
    from mcp.server import MCPServer

    server = MCPServer("failing", version="1")

    @server.tool()
    def send(parcel: str) -> str:
        raise KeyError(f"no street for {parcel}")
"""


def test_error_of_a_tool_is_logged_with_its_text_and_the_authors_lines_only(
    host: HostProcess, server_dir: Path
) -> None:
    folder = server_dir / "failing"
    folder.mkdir()
    (folder / "main.py").write_text(textwrap.dedent(FAILING))
    until(lambda: "failing" in host.request("GET", "/health_check").json["servers"])
    with host.session("failing", "ada:key") as session:
        session.request("tools/call", {"name": "send", "arguments": {"parcel": "books"}})
    _, _, logged = host.log().partition("KeyError: 'no street for books'\n")
    assert logged.splitlines()[0].endswith('failing/main.py", line 8, in send')
    assert "site-packages" not in logged.partition("left out")[0]
    shutil.rmtree(folder)
