// A server on standard input and output, without packages: `fetch` requests a URL, `grow` fills memory without an end.
import { createInterface } from "node:readline";

const kept = [];

async function call({ name, arguments: given }) {
  if (name === "fetch") return (await fetch(given.url)).status.toString();
  for (;;) {
    kept.push(Buffer.alloc(1 << 20, 1));
    await new Promise(setImmediate);
  }
}

async function answer({ method, params }) {
  if (method === "initialize")
    return { protocolVersion: "2025-11-25", capabilities: { tools: {} }, serverInfo: { name: "hog", version: "1" } };
  if (method === "tools/list")
    return { tools: ["fetch", "grow"].map((name) => ({ name, inputSchema: { type: "object" } })) };
  return { content: [{ type: "text", text: await call(params) }] };
}

for await (const line of createInterface({ input: process.stdin })) {
  const message = JSON.parse(line);
  if (message.id !== undefined)
    answer(message).then((result) => console.log(JSON.stringify({ jsonrpc: "2.0", id: message.id, result })));
}
