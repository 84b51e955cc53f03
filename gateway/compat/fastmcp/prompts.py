"""Version 1's prompts: functions that return messages, called on the event loop."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import pydantic_core
from mcp.server.mcpserver.prompts.base import AssistantMessage, Message, PromptArgument, UserMessage
from mcp.server.mcpserver.prompts.base import Prompt as Version2Prompt
from mcp.server.mcpserver.prompts.base import message_validator as _message_validator
from mcp.server.mcpserver.utilities.context_injection import inject_context
from mcp_types import TextContent

from gateway.compat.loop_threads import explained

logger = logging.getLogger(__name__)


class Prompt(Version2Prompt):
    """A prompt."""

    async def render(self, arguments: dict[str, Any] | None = None, context: Any = None) -> list[Message]:
        """Call the function and return its messages. Raises ValueError with the text of whatever went wrong."""
        required = {argument.name for argument in self.arguments or () if argument.required}
        if missing := required - set(arguments or {}):
            raise ValueError(f"Missing required arguments: {missing}")
        try:
            result: Any = self.fn(**inject_context(self.fn, arguments or {}, context, self.context_kwarg))
            if inspect.isawaitable(result):
                result = await result
            return [_as_message(item) for item in (result if isinstance(result, list | tuple) else [result])]
        except Exception as error:
            raise ValueError(f"Error rendering prompt {self.name}: {explained(error)}") from error


def _as_message(item: Any) -> Message:
    try:
        if isinstance(item, Message):
            return item
        if isinstance(item, dict):
            return _message_validator.validate_python(item)
        if isinstance(item, str):
            return UserMessage(content=TextContent(text=item))
        text = pydantic_core.to_json(item, fallback=str, indent=2).decode()
        return Message(role="user", content=text)
    except Exception:
        raise ValueError(f"Could not convert prompt result to message: {item}") from None


class PromptManager:
    """The prompts of a server, by name."""

    def __init__(self, warn_on_duplicate_prompts: bool = True) -> None:
        self.warn_on_duplicate_prompts = warn_on_duplicate_prompts
        self._prompts: dict[str, Prompt] = {}

    def get_prompt(self, name: str) -> Prompt | None:
        """Return the prompt of this name."""
        return self._prompts.get(name)

    def list_prompts(self) -> list[Prompt]:
        """Return all prompts."""
        return list(self._prompts.values())

    def add_prompt(self, prompt: Prompt) -> Prompt:
        """Add a prompt and return it. The first of two prompts of one name stays."""
        if prompt.name in self._prompts and self.warn_on_duplicate_prompts:
            logger.warning("Prompt already exists: %s", prompt.name)
        return self._prompts.setdefault(prompt.name, prompt)

    async def render_prompt(
        self, name: str, arguments: dict[str, Any] | None = None, context: Any = None
    ) -> list[Message]:
        """Return the messages of a prompt. Raises ValueError if there is none of this name."""
        prompt = self._prompts.get(name)
        if prompt is None:
            raise ValueError(f"Unknown prompt: {name}")
        return await prompt.render(arguments, context)


__all__ = ["AssistantMessage", "Message", "Prompt", "PromptArgument", "PromptManager", "UserMessage"]
