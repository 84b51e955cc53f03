"""Prompts, completion and resource templates."""

from mcp.server import Server
from mcp.server.models import InitializationOptions
from mcp.types import (
    Completion,
    CompletionArgument,
    CompletionContext,
    EmbeddedResource,
    GetPromptResult,
    Prompt,
    PromptArgument,
    PromptMessage,
    PromptReference,
    ResourceTemplate,
    ResourceTemplateReference,
    TextContent,
    TextResourceContents,
)

LANGUAGES = ["go", "python", "rust"]
FRAMEWORKS = {"python": ["django", "flask"], "rust": ["axum"]}


def create_server(user_id, api_key=None):
    server = Server("prompts", version="2.1", instructions="Ask for a review.")

    @server.list_prompts()
    async def handle_list_prompts() -> list[Prompt]:
        return [
            Prompt(
                name="review",
                title="Code review",
                description="Review code",
                arguments=[PromptArgument(name="language", description="Of the code", required=True)],
            ),
            Prompt(name="plain"),
        ]

    @server.get_prompt()
    async def handle_get_prompt(name: str, arguments: dict[str, str] | None) -> GetPromptResult:
        if name == "plain":
            return GetPromptResult(
                messages=[PromptMessage(role="assistant", content=TextContent(type="text", text=repr(arguments)))]
            )
        if name != "review":
            raise ValueError(f"Unknown prompt: {name}")
        language = arguments["language"]
        guide = TextResourceContents(uri=f"guide://{language}", mimeType="text/markdown", text=f"# {language}")
        return GetPromptResult(
            description=f"Review {language}",
            messages=[
                PromptMessage(role="user", content=TextContent(type="text", text=f"Review this {language} code.")),
                PromptMessage(role="user", content=EmbeddedResource(type="resource", resource=guide)),
            ],
        )

    @server.list_resource_templates()
    async def handle_list_resource_templates() -> list[ResourceTemplate]:
        return [ResourceTemplate(uriTemplate="guide://{language}", name="guide", mimeType="text/markdown")]

    @server.completion()
    async def handle_completion(ref, argument: CompletionArgument, context: CompletionContext | None):
        if isinstance(ref, PromptReference) and ref.name == "review":
            values = [language for language in LANGUAGES if language.startswith(argument.value)]
            return Completion(values=values, total=len(values), hasMore=False)
        if isinstance(ref, ResourceTemplateReference) and ref.uri == "guide://{language}":
            language = (context.arguments or {}).get("language", "") if context else ""
            return Completion(values=FRAMEWORKS.get(language, []))
        return None

    return server


server = create_server


def get_initialization_options(server_instance: Server) -> InitializationOptions:
    return server_instance.create_initialization_options()
