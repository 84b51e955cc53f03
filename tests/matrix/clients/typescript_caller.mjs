// TypeScript SDK 1.32: node typescript_caller.mjs URL sse|http NAME SECONDS. Calls the tool `file` again and again, each
// time with another number, for so long. Prints one JSON object: how many calls were answered, and what the others said.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [url, kind, name, seconds] = process.argv.slice(2);
const transport = kind === "sse" ? new SSEClientTransport(new URL(url)) : new StreamableHTTPClientTransport(new URL(url));
const client = new Client({ name, version: "1.0.0" });
client.onerror = () => {};
const failures = [];
let answered = 0;
let lastAnswered = 0;
const end = Date.now() + seconds * 1000;
await client.connect(transport);
for (let number = 1; Date.now() < end; number++) {
  const options = { timeout: 20_000 };
  try {
    await client.callTool({ name: "file", arguments: { number: `${name}-${number}` } }, undefined, options);
    answered++;
    lastAnswered = Date.now();
  } catch (error) {
    failures.push(String(error).slice(0, 200));
  }
  await new Promise((resolve) => setTimeout(resolve, 100));
}
console.log(JSON.stringify({ answered, failures, silentSeconds: (Date.now() - lastAnswered) / 1000 }));
process.exit(0);
