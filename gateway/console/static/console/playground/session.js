// One MCP session of this page with a server, through the host's playground endpoint.
// The answer to the opening POST is the stream of the server's messages; the page posts its own, one by one.

const PROTOCOL_VERSION = "2025-11-25";
const MAX_PAGES = 50;
const METHOD_NOT_FOUND = -32601;

/** An error that the server or the host has answered with. */
export class AnswerError extends Error {
  constructor(message, code = null, data = undefined) {
    super(message);
    this.code = code;
    this.data = data;
  }
}

/** The request was cancelled on this page. */
export class Cancelled extends Error {}

export class Session {
  #place;
  #token;
  #events;
  #id = "";
  #pending = new Map();
  #count = 0;
  #closing = new AbortController();
  #hasEnded = false;

  /**
   * place: the path of the server and the user below the endpoint. token: the page's CSRF token.
   * events: answer(request) returns a promise of the result; notify(notification); end(reason).
   */
  constructor(place, token, events) {
    this.#place = place;
    this.#token = token;
    this.#events = events;
    this.capabilities = {};
    this.serverInfo = {};
    this.instructions = "";
  }

  /** Open the session. Throws what refuses it. */
  async start() {
    const response = await this.#fetch("open", "{}", { signal: this.#closing.signal });
    if (!response.body || !(response.headers.get("content-type") || "").startsWith("text/event-stream")) {
      throw new AnswerError("The host did not answer with an event stream.");
    }
    await new Promise((resolve, reject) => {
      this.#read(response.body.getReader(), resolve).then(
        (reason) => { this.#end(reason); reject(new AnswerError(reason)); },
        () => { this.#end("the connection was lost"); reject(new AnswerError("The connection was lost.")); },
      );
    });
    const result = await this.request("initialize", {
      protocolVersion: PROTOCOL_VERSION,
      capabilities: { elicitation: { form: {}, url: {} }, sampling: {}, roots: {} },
      clientInfo: { name: "guMCP playground", version: "1" },
    }).answer;
    this.capabilities = result.capabilities || {};
    this.serverInfo = result.serverInfo || {};
    this.instructions = typeof result.instructions === "string" ? result.instructions : "";
    await this.notify("notifications/initialized");
    if (this.capabilities.logging) {
      await this.request("logging/setLevel", { level: "debug" }).answer.catch(() => {});
    }
  }

  /** Send a request. Returns its id and a promise of its result. */
  request(method, params = {}, onProgress = null) {
    this.#count += 1;
    const id = `p${this.#count}`;
    const sent = onProgress ? { ...params, _meta: { progressToken: id } } : params;
    const answer = new Promise((resolve, reject) => {
      if (this.#hasEnded) {
        reject(new AnswerError("The session has ended."));
        return;
      }
      this.#pending.set(id, { resolve, reject, onProgress });
    });
    if (!this.#hasEnded) {
      this.#post({ jsonrpc: "2.0", id, method, params: sent }).catch((error) => this.#settle(id, "reject", error));
    }
    return { id, answer };
  }

  /** Ask for all pages of a list. */
  async list(method, name) {
    const items = [];
    let cursor;
    for (let page = 0; page < MAX_PAGES; page += 1) {
      const result = await this.request(method, cursor === undefined ? {} : { cursor }).answer;
      items.push(...(Array.isArray(result[name]) ? result[name] : []));
      cursor = result.nextCursor;
      if (typeof cursor !== "string") {
        break;
      }
    }
    return items;
  }

  async notify(method, params = {}) {
    await this.#post({ jsonrpc: "2.0", method, params });
  }

  /** Tell the server that a request's answer is not needed any more. */
  async cancel(id) {
    this.#settle(id, "reject", new Cancelled("Cancelled."));
    await this.notify("notifications/cancelled", { requestId: id, reason: "Cancelled in the playground" });
  }

  close() {
    this.#end("");
    this.#closing.abort();
  }

  async #fetch(action, body, options = {}) {
    const response = await fetch(`${this.#place}/${action}`, {
      method: "POST",
      body,
      headers: {
        "Content-Type": "application/json",
        "X-CSRFToken": this.#token,
        ...(this.#id ? { "Mcp-Session-Id": this.#id } : {}),
      },
      credentials: "same-origin",
      redirect: "error",
      cache: "no-store",
      ...options,
    });
    if (!response.ok) {
      throw new AnswerError(await refusalOf(response));
    }
    return response;
  }

  async #post(message) {
    const response = await this.#fetch("send", JSON.stringify(message));
    await response.text();
  }

  /** Read the stream to its end. Returns the reason of the end. */
  async #read(reader, onStart) {
    const decoder = new TextDecoder();
    let text = "";
    let reason = "the connection was lost";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        return reason;
      }
      text += decoder.decode(value, { stream: true });
      for (let end = text.indexOf("\r\n\r\n"); end >= 0; end = text.indexOf("\r\n\r\n")) {
        const event = eventOf(text.slice(0, end));
        text = text.slice(end + 4);
        if (event.name === "session") {
          this.#id = event.data.id;
          onStart();
        } else if (event.name === "end") {
          reason = event.data.reason || "the host ended it";
        } else if (event.name === "message") {
          this.#take(event.data);
        }
      }
    }
  }

  #take(message) {
    if (typeof message.method === "string" && message.id !== undefined) {
      this.#answer(message);
    } else if (message.method === "notifications/progress") {
      const waiting = this.#pending.get(message.params?.progressToken);
      waiting?.onProgress?.(message.params);
    } else if (typeof message.method === "string") {
      this.#events.notify(message);
    } else if (message.error) {
      const { code, message: text, data } = message.error;
      this.#settle(message.id, "reject", new AnswerError(String(text), code, data));
    } else {
      this.#settle(message.id, "resolve", message.result || {});
    }
  }

  async #answer(request) {
    let answer;
    if (request.method === "ping") {
      answer = { result: {} };
    } else {
      try {
        answer = { result: await this.#events.answer(request) };
      } catch (error) {
        const code = error instanceof AnswerError && error.code !== null ? error.code : METHOD_NOT_FOUND;
        answer = { error: { code, message: error.message } };
      }
    }
    if (!this.#hasEnded && answer.result !== null) {
      await this.#post({ jsonrpc: "2.0", id: request.id, ...answer }).catch((error) => this.#events.fail(error));
    }
  }

  #settle(id, how, value) {
    const waiting = this.#pending.get(id);
    this.#pending.delete(id);
    waiting?.[how](value);
  }

  #end(reason) {
    if (this.#hasEnded) {
      return;
    }
    this.#hasEnded = true;
    for (const id of [...this.#pending.keys()]) {
      this.#settle(id, "reject", new AnswerError("The session ended before the answer."));
    }
    this.#events.end(reason);
  }
}

function eventOf(text) {
  const event = { name: "message", data: {} };
  if (text.startsWith(":")) {
    event.name = "comment";
    return event;
  }
  for (const line of text.split("\r\n")) {
    if (line.startsWith("event: ")) {
      event.name = line.slice(7);
    } else if (line.startsWith("data: ")) {
      event.data = JSON.parse(line.slice(6));
    }
  }
  return event;
}

async function refusalOf(response) {
  try {
    const { error } = await response.json();
    const text = typeof error === "string" ? error : error.message;
    return response.status === 403 && text === "Not permitted."
      ? "Not permitted. Perhaps you were logged out: load the page again."
      : text;
  } catch {
    return `The host answered ${response.status}.`;
  }
}
