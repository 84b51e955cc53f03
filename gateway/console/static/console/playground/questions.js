// What a server asks during a call: elicitation, sampling and roots. The operator answers in the page.

import { element } from "./dom.js";
import { formOf } from "./form.js";
import { AnswerError } from "./session.js";

const DECLINED = -1;
const UNKNOWN_METHOD = -32601;

export class Questions {
  #place;
  #server;
  #open = new Map();

  /** place: where questions are shown. server: the name of the server that asks. */
  constructor(place, server) {
    this.#place = place;
    this.#server = server;
  }

  /** Show a request of the server. The promise has the result, or null if nobody needs it any more. */
  ask(request) {
    const params = request.params || {};
    switch (request.method) {
      case "elicitation/create":
        return params.mode === "url" ? this.#askToOpen(request.id, params) : this.#askForm(request.id, params);
      case "sampling/createMessage":
        return this.#askSample(request.id, params);
      case "roots/list":
        return this.#askRoots(request.id);
      default:
        return Promise.reject(new AnswerError("The playground does not answer this.", UNKNOWN_METHOD));
    }
  }

  /** Take a question back: the server does not wait for its answer any more. */
  withdraw(id) {
    this.#open.get(id)?.(null);
  }

  withdrawAll() {
    for (const settle of [...this.#open.values()]) {
      settle(null);
    }
  }

  /** Show a question. buttons: [text, act], where act returns a result, undefined to stay, or throws an answer. */
  #show(id, title, children, buttons) {
    return new Promise((resolve, reject) => {
      const previous = document.activeElement;
      const heading = element("h3", { tabindex: "-1" }, title);
      const form = element("form", { class: "question", "aria-label": title, novalidate: "" }, heading, ...children);
      const settle = (result, error = null) => {
        this.#open.delete(id);
        form.remove();
        if (previous instanceof HTMLElement && previous.isConnected) {
          previous.focus();
        }
        error ? reject(error) : resolve(result);
      };
      const bar = element("div", { class: "buttons" });
      buttons.forEach(([text, act], index) => {
        const kind = index === 0 ? { type: "submit", class: "button default" } : { type: "button", class: "button" };
        const button = element("button", kind, text);
        const press = () => {
          try {
            const result = act();
            if (result !== undefined) {
              settle(result);
            }
          } catch (error) {
            settle(null, error);
          }
        };
        if (index === 0) {
          form.addEventListener("submit", (event) => { event.preventDefault(); press(); });
        } else {
          button.addEventListener("click", press);
        }
        bar.append(button);
      });
      form.append(bar);
      this.#open.set(id, settle);
      this.#place.append(form);
      heading.focus();
    });
  }

  #askForm(id, params) {
    const form = formOf(params.requestedSchema);
    const children = [
      element("p", { class: "message" }, String(params.message ?? "")),
      form.element,
      element("p", { class: "help" }, `What you enter goes to the server ${this.#server}. Enter no passwords.`),
    ];
    return this.#show(id, `${this.#server} asks`, children, [
      ["Answer", () => { const content = form.read(); return content === null ? undefined : { action: "accept", content }; }],
      ["Decline", () => ({ action: "decline" })],
      ["Dismiss", () => ({ action: "cancel" })],
    ]);
  }

  #askToOpen(id, params) {
    const url = String(params.url ?? "");
    const isWeb = /^https?:\/\//i.test(url);
    const address = isWeb
      ? element("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, url)
      : element("code", {}, url);
    const children = [element("p", { class: "message" }, String(params.message ?? "")), element("p", {}, address)];
    return this.#show(id, `${this.#server} asks you to open an address`, children, [
      ["Done", () => ({ action: "accept" })],
      ["Decline", () => ({ action: "decline" })],
      ["Dismiss", () => ({ action: "cancel" })],
    ]);
  }

  #askSample(id, params) {
    const said = (Array.isArray(params.messages) ? params.messages : []).map((message) =>
      element("pre", { tabindex: "0", "aria-label": `Message of ${message?.role}` }, `${message?.role}: ${textOf(message?.content)}`));
    const system = typeof params.systemPrompt === "string" ? [element("pre", { tabindex: "0" }, `system: ${params.systemPrompt}`)] : [];
    const form = formOf({
      type: "object",
      properties: {
        answer: { type: "string", title: "Answer", description: "What the model would say." },
        model: { type: "string", title: "Model", default: "playground", description: "The name of the model that is told to the server." },
      },
      required: ["answer", "model"],
    });
    return this.#show(id, `${this.#server} asks the model`, [...system, ...said, form.element], [
      ["Answer", () => {
        const value = form.read();
        return value === null ? undefined : {
          role: "assistant",
          content: { type: "text", text: value.answer },
          model: value.model,
          stopReason: "endTurn",
        };
      }],
      ["Refuse", () => { throw new AnswerError("The operator refused the sampling request.", DECLINED); }],
    ]);
  }

  #askRoots(id) {
    const form = formOf({
      type: "object",
      properties: {
        roots: { type: "array", items: { type: "string" }, description: "file:// URIs of folders. None is an answer, too." },
      },
    });
    return this.#show(id, `${this.#server} asks for the client's roots`, [form.element], [
      ["Answer", () => {
        const value = form.read();
        return value === null ? undefined : { roots: (value.roots || []).map((uri) => ({ uri })) };
      }],
      ["Refuse", () => { throw new AnswerError("The operator refused to list roots.", DECLINED); }],
    ]);
  }
}

function textOf(content) {
  const blocks = Array.isArray(content) ? content : [content];
  return blocks.map((block) => (block?.type === "text" ? String(block.text) : JSON.stringify(block))).join("\n");
}
