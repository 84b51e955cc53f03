"""What `manage.py call` answers when a server asks its client: forms, addresses to open, sampling and roots.

Answers come from `--answer` in the order of the questions, then from the terminal. Not here: how questions travel
(the SDK's client).
"""

import asyncio
import json
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError
from mcp import types
from pydantic import FileUrl

from gateway.management.tool_arguments import parse_arguments

_DECLINE = "decline"
_CANCEL = "cancel"


class Respondent:
    """Answers the questions of one call, one after the other."""

    def __init__(self, answers: Sequence[str]) -> None:
        """`answers`: the texts of `--answer`."""
        self._answers = list(answers)
        self._one_at_a_time = asyncio.Lock()
        self.unanswered: str | None = None
        """The first question that nobody could answer."""

    async def elicit(self, context: Any, params: types.ElicitRequestParams) -> types.ElicitResult | types.ErrorData:
        """Fill in a form, or say whether an address was opened."""
        if isinstance(params, types.ElicitRequestURLParams):
            question = f"{params.message}\n  {params.url}"
            text = await self._answer(question, "Done? [yes, decline, cancel]")
        else:
            properties = params.requested_schema.get("properties") or {}
            fields = "; ".join(_field(name, schema, params.requested_schema) for name, schema in properties.items())
            question = f"{params.message} ({fields})" if fields else params.message
            text = await self._answer(question, "Answer [key=value …, decline, cancel]")
        if text is None:
            return types.ErrorData(code=types.INVALID_REQUEST, message="Nobody could answer.")
        if text in (_DECLINE, "no", "n"):
            return types.ElicitResult(action="decline")
        if text == _CANCEL:
            return types.ElicitResult(action="cancel")
        if isinstance(params, types.ElicitRequestURLParams):
            return types.ElicitResult(action="accept")
        return types.ElicitResult(action="accept", content=_form(text, params.requested_schema))

    async def sample(
        self, context: Any, params: types.CreateMessageRequestParams
    ) -> types.CreateMessageResult | types.ErrorData:
        """Say what the client's model would say."""
        question = "The server asks the client's model:\n" + "\n".join(
            f"  {message.role}: {_text(message.content)}" for message in params.messages
        )
        text = await self._answer(question, "The model says")
        if text is None:
            return types.ErrorData(code=types.INVALID_REQUEST, message="Nobody could answer.")
        content = types.TextContent(text=text)
        return types.CreateMessageResult(
            role="assistant", content=content, model="manage.py call", stop_reason="endTurn"
        )

    async def list_roots(self, context: Any) -> types.ListRootsResult | types.ErrorData:
        """Name the client's roots: folders, or file:// addresses."""
        text = await self._answer("The server asks for the client's roots.", "Folders, separated by commas")
        if text is None:
            return types.ErrorData(code=types.INVALID_REQUEST, message="Nobody could answer.")
        return types.ListRootsResult(roots=[_root(part.strip()) for part in text.split(",") if part.strip()])

    async def _answer(self, question: str, prompt: str) -> str | None:
        async with self._one_at_a_time:
            if self._answers:
                return self._answers.pop(0).strip()
            if sys.stdin is not None and sys.stdin.isatty():
                return await _ask_terminal(f"\n{question}\n{prompt}: ")
            self.unanswered = self.unanswered or question
            return None


def _root(text: str) -> types.Root:
    return types.Root(uri=FileUrl(text if "://" in text else Path(text).absolute().as_uri()))


def _field(name: str, schema: Any, form: Mapping[str, Any]) -> str:
    """How a form's field is described to a person."""
    schema = schema if isinstance(schema, Mapping) else {}
    choices = schema.get("enum")
    kind = " | ".join(str(choice) for choice in choices) if isinstance(choices, list) else schema.get("type", "any")
    is_required = name in (form.get("required") or [])
    return f"{name}: {kind}{', required' if is_required else ''}"


def _form(text: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a form, from a JSON object, key=value pairs, or the value of its only field."""
    names = list(schema.get("properties") or {})
    if text.startswith("{"):
        return parse_arguments([text], schema)
    if not text:
        return {}
    words = text.split()
    if len(names) == 1 and not text.startswith(f"{names[0]}="):
        words = [f"{names[0]}={text}"]
    elif len(words) > 1 and not all("=" in word for word in words):
        # A value with spaces in it: everything up to the next name belongs to it.
        words = _joined(words, names)
    return parse_arguments(words, schema)


def _joined(words: Sequence[str], names: Sequence[str]) -> list[str]:
    joined: list[str] = []
    for word in words:
        if not joined or word.partition("=")[0].rstrip(":") in names:
            joined.append(word)
        else:
            joined[-1] += f" {word}"
    return joined


def _text(content: Any) -> str:
    blocks = content if isinstance(content, list) else [content]
    return " ".join(
        block.text if isinstance(block, types.TextContent) else json.dumps(block.model_dump(mode="json"))[:200]
        for block in blocks
    )


async def _ask_terminal(prompt: str) -> str:
    """Ask on the terminal without holding up the event loop."""
    sys.stderr.write(prompt)
    sys.stderr.flush()
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[str] = loop.create_future()

    def deliver(line: str) -> None:
        if not answered.done():
            answered.set_result(line)

    def read() -> None:
        loop.call_soon_threadsafe(deliver, sys.stdin.readline())

    # A daemon of its own, not the loop's executor: Ctrl-C must end the command while this thread waits.
    threading.Thread(target=read, name="terminal", daemon=True).start()
    line = await answered
    if not line:
        raise CommandError("The question was not answered.")
    return line.strip()
