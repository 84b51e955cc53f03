// TypeScript SDK 1.32: node typescript.mjs URL sse|http. Prints what it saw as one JSON object.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [url, kind] = process.argv.slice(2);
const transport = kind === "sse" ? new SSEClientTransport(new URL(url)) : new StreamableHTTPClientTransport(new URL(url));
let protocol;
// The client tells its transport what was negotiated, and nobody else.
const told = transport.setProtocolVersion?.bind(transport);
transport.setProtocolVersion = (version) => {
  protocol = version;
  told?.(version);
};

const client = new Client({ name: "matrix", version: "1.0.0" });
const progress = [];
await client.connect(transport);
const { tools } = await client.listTools();
const called = await client.callTool({ name: "test_simple_text", arguments: {} });
await client.callTool({ name: "test_tool_with_progress", arguments: {} }, undefined, {
  onprogress: (notification) => progress.push(notification.progress),
});
const failed = await client.callTool({ name: "test_error_handling", arguments: {} });
await transport.terminateSession?.();
await client.close();
console.log(
  JSON.stringify({ protocol, tools: tools.length, text: called.content[0].text, progress, is_error: failed.isError }),
);
