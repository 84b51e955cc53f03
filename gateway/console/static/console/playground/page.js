// The playground's page: starts a session, lists what the server offers, and runs what the operator chooses.

import { element } from "./dom.js";
import { formOf } from "./form.js";
import { Questions } from "./questions.js";
import { Runs } from "./runs.js";
import { Session } from "./session.js";

const byId = (id) => document.getElementById(id);

const start = byId("playground-start");
const status = byId("playground-status");
const workbench = byId("playground-workbench");
const questionsPlace = byId("playground-questions");
const kinds = byId("playground-kinds");
const filter = byId("playground-filter");
const items = byId("playground-items");
const panel = byId("playground-panel");
const runsPlace = byId("playground-runs");
const log = byId("playground-log");
const endButton = byId("playground-end");
const startButton = byId("playground-begin");

const MAX_LOG_LINES = 500;

let open = null;
/** What the page has of the session that is open: { session, runs, questions, offers, kind }. */

// -- Choosing server and user -----------------------------------------------------------------------------------------

const server = start.elements.namedItem("server");
const who = start.elements.namedItem("who");

/** Offer only the keys that are for the chosen server. */
function offerKeys() {
  if (!(who instanceof HTMLSelectElement)) {
    return;
  }
  for (const option of who.options) {
    const servers = option.dataset.servers ? JSON.parse(option.dataset.servers) : null;
    option.disabled = option.hidden = servers !== null && !servers.includes(server.value);
  }
  if (who.selectedOptions[0]?.disabled) {
    who.value = "";
  }
}

server.addEventListener("change", offerKeys);
offerKeys();

start.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (who.value.includes(":")) {
    say("Enter a user id only: without a colon and without a key.", true);
    who.focus();
    return;
  }
  if (!who.value || !server.value) {
    say("Choose a server and a user.", true);
    (server.value ? who : server).focus();
    return;
  }
  await begin(server.value, who.value);
});

endButton.addEventListener("click", () => open?.session.close());

// -- The session ------------------------------------------------------------------------------------------------------

async function begin(serverName, user) {
  open?.session.close();
  const place = `${start.dataset.endpoint}${encodeURIComponent(serverName)}/${encodeURIComponent(user)}`;
  const questions = new Questions(questionsPlace, serverName);
  const session = new Session(place, start.elements.namedItem("csrfmiddlewaretoken").value, {
    answer: (request) => questions.ask(request),
    notify: (notification) => take(mine, notification),
    fail: (error) => say(error.message, true),
    end: (reason) => ended(mine, reason),
  });
  const runs = new Runs(runsPlace, session, (uri) => readResource(uri));
  const mine = { session, runs, questions, offers: {}, kind: "" };
  open = mine;
  say(`Starting a session with ${serverName}…`);
  setRunning(true);
  panel.replaceChildren();
  runsPlace.replaceChildren();
  log.replaceChildren();
  byId("playground-log-holder").hidden = true;
  try {
    await session.start();
    for (const kind of KINDS.filter(({ capability }) => session.capabilities[capability])) {
      await refresh(mine, kind);
    }
  } catch (error) {
    if (open === mine) {
      session.close();
      say(error.message, true);
    }
    return;
  }
  if (open !== mine) {
    return;
  }
  const { name = serverName, version = "" } = session.serverInfo;
  say(`Connected to ${name} ${version}`.trim() + ` as ${shownUser()}.`);
  const instructions = byId("playground-instructions");
  instructions.hidden = !session.instructions;
  instructions.lastElementChild.textContent = session.instructions;
  workbench.hidden = false;
  showKinds();
  const first = KINDS.find((kind) => mine.offers[kind.name]?.length) || KINDS[0];
  chooseKind(first.name);
  kinds.querySelector('[aria-pressed="true"]')?.focus();
}

function shownUser() {
  return who instanceof HTMLSelectElement ? who.selectedOptions[0].textContent.trim() : who.value;
}

function ended(mine, reason) {
  mine.questions.withdrawAll();
  if (open !== mine) {
    return;
  }
  open = null;
  setRunning(false);
  for (const button of panel.querySelectorAll("button.run-it")) {
    button.disabled = true;
  }
  for (const button of runsPlace.querySelectorAll("button")) {
    button.disabled = true;
  }
  say(reason ? `The session has ended: ${reason}.` : "The session has ended.");
}

function setRunning(isRunning) {
  endButton.hidden = !isRunning;
  startButton.textContent = isRunning ? "Start another" : "Start";
  workbench.classList.toggle("is-ended", !isRunning);
}

function say(text, isProblem = false) {
  status.textContent = text;
  status.classList.toggle("is-problem", isProblem);
}

// -- What the server says unasked -------------------------------------------------------------------------------------

function take(mine, { method, params = {} }) {
  if (open !== mine) {
    return;
  }
  if (method === "notifications/message") {
    const text = typeof params.data === "string" ? params.data : JSON.stringify(params.data);
    const level = String(params.level);
    mine.runs.log(level, text);
    note(`${level}: ${text}`);
  } else if (method === "notifications/cancelled") {
    mine.questions.withdraw(params.requestId);
  } else {
    const kind = KINDS.find(({ changed }) => changed === method);
    note(method);
    if (kind) {
      refresh(mine, kind).then(() => { showKinds(); showItems(); }).catch((error) => say(error.message, true));
    }
  }
}

function note(text) {
  byId("playground-log-holder").hidden = false;
  log.append(element("li", {}, text));
  if (log.children.length > MAX_LOG_LINES) {
    log.firstElementChild.remove();
  }
}

// -- What the server offers -------------------------------------------------------------------------------------------

const KINDS = [
  { name: "tools", title: "Tools", capability: "tools", changed: "notifications/tools/list_changed", show: showTool },
  { name: "resources", title: "Resources", capability: "resources", changed: "notifications/resources/list_changed", show: showResource },
  { name: "prompts", title: "Prompts", capability: "prompts", changed: "notifications/prompts/list_changed", show: showPrompt },
];

async function refresh({ session, offers }, { name }) {
  offers[name] = await session.list(`${name}/list`, name);
  if (name === "resources") {
    const templates = await session.list("resources/templates/list", "resourceTemplates").catch(() => []);
    offers[name] = [...offers[name], ...templates];
  }
}

function showKinds() {
  const had = kinds.contains(document.activeElement);
  kinds.replaceChildren(...KINDS.map(({ name, title }) => {
    const size = open?.offers[name]?.length ?? 0;
    const pressed = String(open?.kind === name);
    const button = element("button", { type: "button", class: "button", "aria-pressed": pressed, "data-kind": name }, `${title} (${size})`);
    button.addEventListener("click", () => chooseKind(name));
    return button;
  }));
  if (had) {
    kinds.querySelector('[aria-pressed="true"]')?.focus();
  }
}

function chooseKind(name) {
  if (!open) {
    return;
  }
  open.kind = name;
  filter.value = "";
  showKinds();
  showItems();
}

filter.addEventListener("input", showItems);

function showItems() {
  if (!open) {
    return;
  }
  const kind = KINDS.find(({ name }) => name === open.kind) || KINDS[0];
  const wanted = filter.value.trim().toLowerCase();
  const found = (open.offers[kind.name] || []).filter((item) =>
    `${item.name} ${item.title ?? ""} ${item.description ?? ""} ${item.uri ?? item.uriTemplate ?? ""}`.toLowerCase().includes(wanted));
  items.setAttribute("aria-label", kind.title);
  const chosen = panel.dataset.item;
  items.replaceChildren(...found.map((item) => {
    const about = item.description ?? item.uri ?? item.uriTemplate ?? "";
    const isChosen = chosen === keyOf(kind, item);
    const button = element(
      "button",
      { type: "button", class: "item", "aria-current": String(isChosen) },
      element("span", { class: "item-name" }, String(item.name)),
      element("span", { class: "item-about" }, String(about)),
    );
    button.addEventListener("click", () => {
      panel.dataset.item = keyOf(kind, item);
      for (const other of items.querySelectorAll("button")) {
        other.setAttribute("aria-current", String(other === button));
      }
      kind.show(item);
      panel.querySelector("h2").focus();
    });
    return element("li", {}, button);
  }));
  byId("playground-none").hidden = found.length > 0;
}

function keyOf(kind, item) {
  return JSON.stringify([kind.name, item.name, item.uri ?? item.uriTemplate ?? ""]);
}

// -- Running ----------------------------------------------------------------------------------------------------------

const HINTS = {
  readOnlyHint: "it only reads",
  destructiveHint: "it may destroy something",
  idempotentHint: "a repetition changes nothing more",
  openWorldHint: "it reaches outside of the server",
};

function showTool(tool) {
  const hints = Object.keys(HINTS).filter((name) => tool.annotations?.[name] === true).map((name) => HINTS[name]);
  const about = hints.length ? [element("p", { class: "help" }, `The server says of this tool: ${hints.join("; ")}.`)] : [];
  showForm(tool, tool.inputSchema, "Run", about, (values) =>
    open.runs.start(String(tool.name), "tools/call", { name: tool.name, arguments: values }));
}

function showPrompt(prompt) {
  const named = (Array.isArray(prompt.arguments) ? prompt.arguments : []).filter((it) => typeof it?.name === "string");
  const schema = {
    type: "object",
    properties: Object.fromEntries(named.map(({ name, title, description }) => [name, { type: "string", title, description }])),
    required: named.filter(({ required }) => required === true).map(({ name }) => name),
  };
  showForm(prompt, schema, "Get", [], (values) =>
    open.runs.start(String(prompt.name), "prompts/get", { name: prompt.name, arguments: values }));
}

function showResource(resource) {
  const template = resource.uriTemplate;
  if (typeof template !== "string") {
    const code = element("p", {}, element("code", {}, String(resource.uri)));
    showForm(resource, { type: "object", properties: {} }, "Read", [code], () => readResource(resource.uri));
    return;
  }
  const names = [...template.matchAll(/\{([^{}]*)\}/g)].map(([, name]) => name);
  const isSimple = names.every((name) => /^\w+$/.test(name));
  const properties = isSimple
    ? Object.fromEntries(names.map((name) => [name, { type: "string" }]))
    : { uri: { type: "string", default: template, description: "Put values in place of what is in braces." } };
  const code = element("p", {}, element("code", {}, template));
  showForm(resource, { type: "object", properties, required: Object.keys(properties) }, "Read", [code], (values) =>
    readResource(isSimple ? template.replaceAll(/\{(\w+)\}/g, (_, name) => encodeURIComponent(values[name])) : values.uri));
}

function readResource(uri) {
  return open?.runs.start(String(uri), "resources/read", { uri });
}

function showForm(item, schema, verb, children, run) {
  const title = typeof item.title === "string" && item.title !== item.name ? ` ${item.title}` : "";
  const heading = element("h2", { tabindex: "-1" }, element("span", { class: "item-name" }, String(item.name)), title);
  const about = typeof item.description === "string" ? [element("p", { class: "message" }, item.description)] : [];
  const fields = formOf(schema);
  const raw = formOf({});
  raw.element.hidden = true;
  const problem = element("p", { class: "field-error", role: "alert" });
  const asJson = element("button", { type: "button", class: "button" }, "Enter as JSON");
  const submit = element("button", { type: "submit", class: "button default run-it" }, verb);
  const form = element(
    "form",
    { novalidate: "", "aria-label": `${verb} ${item.name}` },
    fields.element, raw.element, problem,
    element("div", { class: "buttons" }, submit, ...(fields.hasOneView ? [] : [asJson])),
  );
  const shown = () => (raw.element.hidden ? fields : raw);
  const values = () => {
    const read = shown().read();
    problem.textContent = read === null ? "Some values are not right. Each has its error beside it." : "";
    return read;
  };
  asJson.addEventListener("click", () => {
    // What is entered comes along, as far as it is right.
    const read = shown().read();
    if (read === null && !raw.element.hidden) {
      return;
    }
    (raw.element.hidden ? raw : fields).fill(read ?? {});
    problem.textContent = "";
    raw.element.hidden = !raw.element.hidden;
    fields.element.hidden = !raw.element.hidden;
    asJson.textContent = raw.element.hidden ? "Enter as JSON" : "Enter in fields";
    asJson.focus();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const read = open ? values() : null;
    if (read !== null) {
      run(read);
      runsPlace.querySelector(".run button:not([hidden])")?.focus();
    }
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      form.requestSubmit();
    }
  });
  panel.replaceChildren(heading, ...about, ...children, form);
}
