"""The calls that are made to each fixture server, on mcp 1.28 and here, and compared.

A step that answers otherwise here on purpose says what it answers and why (the numbers of `gateway.compat.server`).
"""

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Step:
    method: str
    params: dict[str, Any] = field(default_factory=dict)
    in_2026: bool = True
    """Whether the method exists in protocol 2026-07-28."""
    is_notification: bool = False
    is_eventual: bool = False
    """Whether the step waits for a notification's handler, which nothing acknowledges."""
    here: dict[str, Any] | None = None
    """The result here, where it is another one than on 1.28."""
    lists_output_schemas: bool = False
    """Whether the output schemas that 1.28 lists are listed here, too."""
    without_output_schema: tuple[str, ...] = ()
    """Tools whose output schema is not listed here all the same."""
    user_id: str | None = None
    """Who makes the step, where it is not the conversation's user."""
    beside: list["Step"] = field(default_factory=list)
    """Steps that are made at the same time."""


@dataclass(frozen=True)
class Conversation:
    server: str
    steps: list[Step]
    user_id: str = "maria"

    @property
    def users(self) -> set[str]:
        """Everybody who makes a step."""
        steps = [beside for step in self.steps for beside in (step, *step.beside)]
        return {step.user_id or self.user_id for step in steps}


def call(
    name: str, /, meta: dict[str, Any] | None = None, here: dict[str, Any] | None = None, **arguments: Any
) -> Step:
    params: dict[str, Any] = {"name": name, "arguments": arguments}
    if meta:
        params["_meta"] = meta
    return Step("tools/call", params, here=here)


def at_once(*steps: Step) -> Step:
    first, *others = steps
    return replace(first, beside=others)


def by(user_id: str, step: Step) -> Step:
    return replace(step, user_id=user_id)


def text_result(text: str, *, is_error: bool = False) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}], "isError": is_error}


CONVERSATIONS = [
    Conversation(
        "notes",
        [
            Step("tools/list"),
            call("whoami"),
            Step("tools/call", {"name": "whoami"}),
            call("unknown"),
            # 2: 1.28 wants structured content, because the tool has an outputSchema; no arguments fit an array.
            call("read_note", name="groceries", here=text_result("milk, eggs")),
            # 3: 1.28 validates by default, the version the servers were written for did not.
            call("read_note", here=text_result("'name'", is_error=True)),
            Step("resources/list"),
            Step("resources/read", {"uri": "notes:///groceries"}),
            Step("resources/read", {"uri": "notes:///all"}),
            Step("resources/read", {"uri": "notes:///nothing"}),
            Step("resources/read", {"uri": "HTTPS://Notes.example"}),
            Step("prompts/list"),
            Step("ping", in_2026=False),
        ],
    ),
    Conversation("notes", [call("whoami")], user_id="stranger"),
    Conversation(
        "result-forms",
        [
            Step("tools/list"),
            *(
                call("make", form=form)
                for form in (
                    "list",
                    "empty",
                    "tuple_of_blocks",
                    "generator",
                    "broken_generator",
                    "structured",
                    "both",
                    "content_only",
                    "result",
                    "error_result",
                    "image",
                    "audio",
                    "embedded",
                    "link",
                    "dictionaries",
                    "none",
                    "number",
                    "no such form",
                )
            ),
            # 4: on 1.28 the fields of the block are taken for its content, and the validation error is the answer.
            call("make", form="bare", here=text_result("alone")),
            Step("resources/list"),
            *(
                Step("resources/read", {"uri": f"forms:///{form}"})
                for form in ("text", "bytes", "generator", "none", "float")
            ),
        ],
    ),
    Conversation(
        "failures",
        [
            *(call("fail", kind=kind) for kind in ("value", "key", "silent", "vendor", "group", "mcp", "elicit", "no")),
            call("fail", kind="pydantic"),
            call("another"),
            *(
                Step("resources/read", {"uri": f"fail:///{kind}"})
                for kind in ("value", "key", "silent", "vendor", "group", "mcp", "pydantic", "elicit", "no")
            ),
            *(Step("prompts/get", {"name": kind}) for kind in ("value", "mcp", "pydantic", "no")),
            Step("resources/list"),
            Step(
                "completion/complete",
                {"ref": {"type": "ref/prompt", "name": "x"}, "argument": {"name": "a", "value": ""}},
            ),
        ],
    ),
    Conversation(
        "prompts",
        [
            Step("prompts/list"),
            Step("prompts/get", {"name": "review", "arguments": {"language": "rust"}}),
            Step("prompts/get", {"name": "plain"}),
            Step("prompts/get", {"name": "other"}),
            Step("resources/templates/list"),
            *(
                Step("completion/complete", params)
                for params in (
                    {"ref": {"type": "ref/prompt", "name": "review"}, "argument": {"name": "language", "value": "p"}},
                    {"ref": {"type": "ref/prompt", "name": "plain"}, "argument": {"name": "language", "value": "p"}},
                    {
                        "ref": {"type": "ref/resource", "uri": "guide://{language}"},
                        "argument": {"name": "framework", "value": ""},
                        "context": {"arguments": {"language": "python"}},
                    },
                )
            ),
        ],
    ),
    Conversation(
        "watcher",
        [
            Step("logging/setLevel", {"level": "error"}, in_2026=False),
            Step("resources/subscribe", {"uri": "watch:///b"}, in_2026=False),
            Step("resources/subscribe", {"uri": "watch:///a"}, in_2026=False),
            Step("resources/subscribe", {"uri": "other:///a"}, in_2026=False),
            Step("tools/call", {"name": "touch"}, in_2026=False),
            Step("resources/list", in_2026=False),
            Step("resources/unsubscribe", {"uri": "watch:///a"}, in_2026=False),
            Step("resources/unsubscribe", {"uri": "watch:///a"}, in_2026=False),
            Step("tools/call", {"name": "touch"}, in_2026=False),
        ],
    ),
    Conversation("watcher", [Step("tools/call", {"name": "touch"})]),
    Conversation(
        "progress",
        [
            call("context"),
            call("work", steps=2, meta={"progressToken": "job-1"}),
            call("work", steps=1),
            Step(
                "notifications/progress",
                {"progressToken": "mine", "progress": 0.5, "total": 1.0, "message": "half"},
                in_2026=False,
                is_notification=True,
            ),
            Step("tools/call", {"name": "heard"}, in_2026=False, is_eventual=True),
        ],
    ),
    Conversation(
        "pages",
        [
            Step("tools/list"),
            Step("tools/list", {"cursor": "2"}),
            Step("tools/list", {"cursor": "4"}),
            Step("tools/list", {"cursor": "not a number"}),
            call("tool-1"),
            Step("resources/list"),
            Step("resources/list", {"cursor": "2"}),
            Step("prompts/list", {"cursor": "2"}),
        ],
    ),
    Conversation(
        "slow_vendor",
        [
            Step("tools/list"),
            call("sleep", seconds=0.01),
            call("fetch", path="/a"),
            call("in_thread", seconds=0.01),
            call("fetch", path="/b"),
        ],
    ),
    Conversation(
        "strict",
        [
            Step("tools/list"),
            call("add", a=1, b=2),
            call("add", a=1),
            call("add", a="one", b=2),
        ],
    ),
    Conversation("raw_handlers", [Step("tools/list"), call("echo", text="hello")]),
    Conversation(
        "fastmcp_shop",
        [
            # What `gateway.compat.fastmcp` calls 1.
            Step("tools/list", lists_output_schemas=True, without_output_schema=("content",)),
            call("add", a=1),
            call("add", a="3", b=4),
            call("add", a="many"),
            call("add"),
            call("described", query="tea", size="l", order="desc", limit=3),
            call("described", query="t"),
            call("buy", item={"name": "tea", "price": 3}),
            call("buy", item='{"name": "tea", "price": 3}', others='[{"name": "milk", "price": 1}]', notes={"a": "b"}),
            call("buy", item={"name": "tea", "price": -3}),
            *(call("anything", value=value) for value in ("text", 1, [1], {"a": 1}, "[1]", None)),
            *(
                call(name)
                for name in (
                    *("no_annotation", "nothing", "a_list", "a_dictionary", "any_dictionary", "a_typed_dictionary"),
                    *("a_dataclass", "a_model", "unstructured", "of_no_schema", "not_what_was_said"),
                    *("a_picture", "a_sound", "a_mixture", "a_result"),
                )
            ),
            call("content", here=text_result("said")),  # 1 of `gateway.compat.fastmcp`
            call("maybe", found=True),
            call("maybe", found=False),
            *(call("fail", kind=kind) for kind in ("tool", "mcp", "resource", "silent", "key")),
            call("no such tool"),
            call("shop"),
            call("talk"),
            call("work", steps=2, meta={"progressToken": "job"}),
            call("work", steps=2),
            call("plain_with_context", meta={"client_id": "till 3"}),
            *(call("read", uri=f"shop://{name}") for name in ("opening-hours", "users/ada", "nothing", "broken")),
            replace(call("ask_model"), in_2026=False),
            replace(call("ask_user"), in_2026=False),
            call("slowly", seconds=0.05),
            Step("resources/list"),
            Step("resources/templates/list"),
            *(
                Step("resources/read", {"uri": f"shop://{name}"})
                for name in (
                    *("opening-hours", "logo", "prices", "broken", "motto", "source", "nothing"),
                    *("shelves/a/items/3", "shelves/a%20b/items/3", "shelves/a/items/x", "shelves/a/items/10"),
                    *("shelves/a/b/items/3", "users/ada", "users/.."),
                )
            ),
            Step("prompts/list"),
            Step("prompts/get", {"name": "review", "arguments": {"code": "x = 1"}}),
            Step("prompts/get", {"name": "review"}),
            Step("prompts/get", {"name": "haggle", "arguments": {"price": "3"}}),
            Step("prompts/get", {"name": "haggle", "arguments": {"price": "cheap"}}),
            *(
                Step("prompts/get", {"name": name})
                for name in ("from_dictionaries", "failing", "with_context", "nothing")
            ),
            Step(
                "completion/complete",
                {"ref": {"type": "ref/prompt", "name": "review"}, "argument": {"name": "language", "value": "p"}},
            ),
            Step(
                "completion/complete",
                {"ref": {"type": "ref/prompt", "name": "haggle"}, "argument": {"name": "price", "value": "p"}},
            ),
        ],
    ),
    Conversation(
        "one_loop",
        [
            call("loops"),
            by("ines", call("loops")),
            at_once(*[call("share_lock")] * 4, *[by("ines", call("share_lock"))] * 4),
            at_once(*[call("share_semaphore")] * 8),
            call("share_lock"),
            call("double", number=21),
            at_once(*(call("double", number=number) for number in range(5)), by("ines", call("double", number=50))),
            *[call("fetch"), by("ines", call("fetch"))] * 3,
            *[call("tenant"), by("ines", call("tenant"))] * 2,
            at_once(call("meet"), by("ines", call("meet"))),
            call("start"),
            by("ines", call("join", user="maria")),
            call("group"),
        ],
    ),
]
