// The results on the page: one entry for each use of a tool, a resource or a prompt, the newest first.

import { contentNodes, jsonNode, resourceNode } from "./content.js";
import { element } from "./dom.js";
import { Cancelled } from "./session.js";

const MAX_RUNS = 20;
const MAX_LOG_LINES = 500;

export class Runs {
  #place;
  #session;
  #read;
  #running = new Set();

  /** place: where results are shown. read(uri): reads a resource that a result links to. */
  constructor(place, session, read) {
    this.#place = place;
    this.#session = session;
    this.#read = read;
  }

  /** Send a request and show what comes of it. `title` names it. */
  start(title, method, params) {
    const run = this.#add(title, () => this.start(title, method, params));
    if (Object.keys(params.arguments || {}).length) {
      const text = element("pre", { tabindex: "0" }, JSON.stringify(params.arguments, null, 2));
      run.body.append(element("details", {}, element("summary", {}, "Arguments"), text));
    }
    const started = performance.now();
    const { id, answer } = this.#session.request(method, params, (progress) => run.progress(progress));
    run.cancelButton.addEventListener("click", () => {
      run.repeatButton.hidden = false;
      run.repeatButton.focus();
      this.#session.cancel(id).catch(() => {});
    });
    const seconds = () => ((performance.now() - started) / 1000).toFixed(2);
    this.#running.add(run);
    return answer
      .then((result) => {
        const isError = result.isError === true;
        run.end(isError ? `Error result after ${seconds()} s` : `Done in ${seconds()} s`, isError ? "error" : "done");
        run.body.append(...this.#nodesOf(result));
      })
      .catch((error) => {
        if (error instanceof Cancelled) {
          run.end(`Cancelled after ${seconds()} s`, "cancelled");
          return;
        }
        run.end(`Failed after ${seconds()} s`, "error");
        const code = error.code === null || error.code === undefined ? "" : ` (code ${error.code})`;
        run.body.append(element("p", { class: "message" }, `${error.message}${code}`));
        if (error.data !== undefined) {
          run.body.append(jsonNode(error.data, "Data of the error"));
        }
      })
      .finally(() => this.#running.delete(run));
  }

  /** Show a log message of the server. It names no call, so it is shown with those that run, or else the newest. */
  log(level, text) {
    const running = [...this.#running];
    for (const run of running.length ? running : [this.#newest].filter(Boolean)) {
      run.log(level, text);
    }
    return running.length > 0 || this.#newest !== null;
  }

  #newest = null;

  #add(title, repeat) {
    const status = element("p", { class: "run-status", role: "status" }, "Running…");
    const bar = element("progress", { "aria-label": `Progress of ${title}`, hidden: "" });
    const cancelButton = element("button", { type: "button", class: "button" }, "Cancel");
    const repeatButton = element("button", { type: "button", class: "button", hidden: "" }, "Repeat");
    const steps = element("ol", { class: "run-steps", "aria-label": "Progress", hidden: "" });
    const lines = element("ol", { class: "run-log", "aria-label": "Log messages", hidden: "" });
    const body = element("div", { class: "run-body" });
    const holder = element(
      "article",
      { class: "run", "aria-label": title },
      element("header", {}, element("h3", {}, title), cancelButton, repeatButton),
      status, bar, steps, lines, body,
    );
    repeatButton.addEventListener("click", repeat);
    this.#place.prepend(holder);
    while (this.#place.children.length > MAX_RUNS) {
      this.#place.lastElementChild.remove();
    }
    const add = (list, text, kind) => {
      list.hidden = false;
      list.append(element("li", { class: kind }, text));
      if (list.children.length > MAX_LOG_LINES) {
        list.firstElementChild.remove();
      }
    };
    const run = {
      body, cancelButton, repeatButton,
      progress({ progress, total, message }) {
        const amount = typeof total === "number" ? `${progress} of ${total}` : String(progress);
        const text = typeof message === "string" ? `${amount}: ${message}` : amount;
        add(steps, text, "");
        status.textContent = `Running… ${text}`;
        bar.hidden = typeof total !== "number" || !(total > 0);
        if (!bar.hidden) {
          bar.max = total;
          bar.value = progress;
        }
      },
      log(level, text) { add(lines, `${level}: ${text}`, `log-${/^[a-z]+$/.test(level) ? level : "other"}`); },
      end(text, kind) {
        status.textContent = text;
        holder.classList.add(`run-${kind}`);
        const hadFocus = document.activeElement === cancelButton;
        cancelButton.hidden = bar.hidden = true;
        repeatButton.hidden = false;
        if (hadFocus) {
          repeatButton.focus();
        }
      },
    };
    this.#newest = run;
    return run;
  }

  #nodesOf(result) {
    const nodes = [];
    if (Array.isArray(result.content)) {
      nodes.push(...contentNodes(result.content, this.#read));
    }
    if (result.structuredContent !== undefined) {
      nodes.push(jsonNode(result.structuredContent, "Structured result"));
    }
    if (Array.isArray(result.contents)) {
      nodes.push(...result.contents.map((resource) => resourceNode(resource || {})));
    }
    if (Array.isArray(result.messages)) {
      for (const message of result.messages) {
        nodes.push(element("section", { class: "prompt-message" }, element("h4", {}, String(message?.role)),
          ...contentNodes(message?.content, this.#read)));
      }
    }
    return nodes.length ? nodes : [jsonNode(result, "Result")];
  }
}
