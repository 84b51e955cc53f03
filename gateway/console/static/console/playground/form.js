// Forms from JSON schemas: what a tool takes, or what a server asks.
// A field has: element, read(errors), fill(value), isChanged(). `read` returns undefined for what is left out, and adds
// to `errors` the controls whose values are wrong. What has no field of its own is entered as JSON.

import { element } from "./dom.js";

const MAX_DEPTH = 6;
const MAX_REFERENCES = 20;
const MAX_FIELDS = 500;

let count = 0;

/** A form for an object schema. read() returns the object, or null if it has errors, which it then shows. */
export function formOf(schema) {
  const root = isObject(schema) ? schema : {};
  // A small schema may describe a form without end.
  const whole = { root, fieldsLeft: MAX_FIELDS };
  const field = fieldOf(root, { whole, name: "", label: "Arguments", isRequired: true, depth: 0, references: ["#"] });
  return {
    element: field.element,
    /** Whether there is nothing to choose between fields and JSON. */
    hasOneView: field.isEmpty === true || field.isJson === true,
    read() {
      for (const message of field.element.querySelectorAll(".field-error")) {
        message.textContent = "";
      }
      for (const control of field.element.querySelectorAll("[aria-invalid]")) {
        control.removeAttribute("aria-invalid");
      }
      const errors = [];
      const value = field.read(errors);
      errors[0]?.focus();
      return errors.length ? null : value ?? {};
    },
    fill: (value) => field.fill(value),
  };
}

function fieldOf(given, at) {
  const references = [...at.references];
  const schema = resolved(given, at.whole.root, references);
  const isRecursive = new Set(references).size < references.length;
  at.whole.fieldsLeft -= 1;
  if (schema === null || isRecursive || at.depth > MAX_DEPTH || at.whole.fieldsLeft < 0) {
    return jsonField(given, at);
  }
  at = { ...at, references };
  if ("const" in schema) {
    return choiceField([{ value: schema.const, title: shown(schema.const) }], schema, at);
  }
  const choices = choicesOf(schema);
  if (choices) {
    return choiceField(choices, schema, at);
  }
  switch (schema.type) {
    case "object":
      return hasFields(schema, at) ? objectField(schema, at) : jsonField(schema, at);
    case "array":
      return schema.prefixItems || !isObject(schema.items) ? jsonField(schema, at) : arrayField(schema, at);
    case "boolean":
      return booleanField(schema, at);
    case "integer":
    case "number":
      return numberField(schema, at);
    case "string":
      return textField(schema, at);
    default:
      return hasFields(schema, at) ? objectField(schema, at) : jsonField(schema, at);
  }
}

// -- Schemas ----------------------------------------------------------------------------------------------------------

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The schema without references and without "or null". null if it is more than one field can show.
 *  `references` gets the references on the way. */
function resolved(given, root, references = []) {
  let schema = given;
  for (let steps = 0; steps < MAX_REFERENCES; steps += 1) {
    if (!isObject(schema)) {
      return null;
    }
    if (typeof schema.$ref === "string") {
      const { $ref, ...rest } = schema;
      const target = pointedAt(root, $ref);
      references.push($ref);
      if (!isObject(target)) {
        return null;
      }
      schema = { ...target, ...rest };
    } else if (Array.isArray(schema.type)) {
      const types = schema.type.filter((type) => type !== "null");
      if (types.length !== 1) {
        return null;
      }
      schema = { ...schema, type: types[0], isNullable: true };
    } else if (!schema.type && Array.isArray(schema.allOf) && schema.allOf.length === 1) {
      const { allOf, ...rest } = schema;
      schema = { ...allOf[0], ...rest };
    } else if (!schema.type && alternatives(schema) && !choicesOf(schema)) {
      const { anyOf, oneOf, ...rest } = schema;
      const others = (anyOf || oneOf).filter((other) => !(isObject(other) && other.type === "null"));
      if (others.length !== 1) {
        return null;
      }
      schema = { ...others[0], ...rest, isNullable: true };
    } else {
      return schema;
    }
  }
  return null;
}

function alternatives(schema) {
  const list = schema.anyOf || schema.oneOf;
  return Array.isArray(list) && list.length ? list : null;
}

function pointedAt(root, reference) {
  if (!reference.startsWith("#")) {
    return null;
  }
  let target = root;
  for (const part of reference.slice(1).split("/").slice(1)) {
    const key = decodeURIComponent(part).replaceAll("~1", "/").replaceAll("~0", "~");
    if (!(isObject(target) || Array.isArray(target)) || !Object.hasOwn(target, key)) {
      return null;
    }
    target = target[key];
  }
  return target;
}

function choicesOf(schema) {
  if (Array.isArray(schema.enum) && schema.enum.length) {
    const names = Array.isArray(schema.enumNames) ? schema.enumNames : [];
    return schema.enum.map((value, index) => ({ value, title: String(names[index] ?? shown(value)) }));
  }
  const list = alternatives(schema);
  if (list && list.every((other) => isObject(other) && "const" in other)) {
    return list.map((other) => ({ value: other.const, title: titleOf(other, shown(other.const)) }));
  }
  return null;
}

/** Whether an object schema says which properties there are. A tool whose schema has none takes no arguments. */
function hasFields(schema, at) {
  if (isObject(schema.properties) && Object.keys(schema.properties).length) {
    return true;
  }
  return at.depth === 0 && (isObject(schema.properties) || schema.additionalProperties === false);
}

function shown(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

function titleOf(schema, fallback) {
  return typeof schema.title === "string" && schema.title ? schema.title : fallback;
}

function same(one, other) {
  return JSON.stringify(one) === JSON.stringify(other);
}

// -- What all fields share --------------------------------------------------------------------------------------------

function newId() {
  count += 1;
  return `field-${count}`;
}

function isSameName(title, name) {
  const plain = (text) => text.toLowerCase().replaceAll(/[^\p{L}\p{N}]/gu, "");
  return plain(title) === plain(name);
}

function labelParts(schema, at) {
  const title = titleOf(schema, "");
  const parts = [element("span", { class: "field-name" }, at.label)];
  if (title && at.name && !isSameName(title, at.name)) {
    parts.push(` ${title}`);
  }
  if (at.isRequired && at.name && !at.isItem) {
    parts.push(" ", element("span", { class: "field-required" }, "required"));
  }
  return parts;
}

/** The row of one control: its label, description and error. */
function row(control, schema, at, hint = "") {
  const id = newId();
  control.id = id;
  const about = typeof schema.description === "string" ? schema.description.trim() : "";
  const help = [about && hint && !/[.!?:]$/.test(about) ? `${about}.` : about, hint].filter(Boolean).join(" ");
  const message = element("p", { class: "field-error", id: `${id}-error` });
  const described = [help ? `${id}-help` : "", `${id}-error`].filter(Boolean).join(" ");
  control.setAttribute("aria-describedby", described);
  if (at.isRequired && at.name) {
    control.setAttribute("aria-required", "true");
  }
  const label = element("label", { for: id }, ...labelParts(schema, at));
  const isTick = control.type === "checkbox";
  return {
    message,
    element: element(
      "div",
      { class: isTick ? "field field-tick" : "field" },
      ...(isTick ? [control, label] : [label]),
      ...(help ? [element("p", { class: "field-help", id: `${id}-help` }, help)] : []),
      ...(isTick ? [] : [control]),
      message,
    ),
  };
}

function refuse(errors, control, message, text) {
  message.textContent = text;
  control.setAttribute("aria-invalid", "true");
  errors.push(control);
  return undefined;
}

/** A field of one control that holds text. `parse` returns the value, or throws an Error whose message is shown. */
function controlField(control, schema, at, hint, parse, format) {
  const { element: holder, message } = row(control, schema, at, hint);
  let initial = "";
  if (schema.default !== undefined && schema.default !== null) {
    initial = format(schema.default);
    control.value = initial;
  }
  return {
    element: holder,
    isChanged: () => control.value !== initial,
    fill(value) {
      control.value = value === undefined || value === null ? "" : format(value);
    },
    read(errors) {
      if (control.value === "") {
        if (!at.isRequired) {
          return undefined;
        }
        return schema.isNullable ? null : refuse(errors, control, message, "Enter a value.");
      }
      try {
        return parse(control.value);
      } catch (error) {
        return refuse(errors, control, message, error.message);
      }
    },
  };
}

// -- Fields -----------------------------------------------------------------------------------------------------------

function textField(schema, at) {
  const isDate = schema.format === "date";
  const control = isDate
    ? element("input", { type: "date" })
    : element("textarea", { rows: "1", spellcheck: "false", class: "field-text" });
  const hints = [];
  if (schema.format && !isDate) {
    hints.push(`Format: ${schema.format}.`);
  }
  if (Array.isArray(schema.examples) && schema.examples.length) {
    hints.push(`Such as ${shown(schema.examples[0])}.`);
  }
  const parse = (text) => {
    const length = [...text].length;
    if (length < (schema.minLength ?? 0)) {
      throw new Error(`Enter at least ${schema.minLength} characters (${length} now).`);
    }
    if (length > (schema.maxLength ?? Infinity)) {
      throw new Error(`Enter at most ${schema.maxLength} characters (${length} now).`);
    }
    return text;
  };
  return controlField(control, schema, at, hints.join(" "), parse, String);
}

function numberField(schema, at) {
  const isInteger = schema.type === "integer";
  const control = element("input", { type: "text", inputmode: isInteger ? "numeric" : "decimal", autocomplete: "off" });
  const bounds = [];
  const low = schema.minimum ?? schema.exclusiveMinimum;
  const high = schema.maximum ?? schema.exclusiveMaximum;
  if (typeof low === "number") {
    bounds.push(schema.minimum === undefined ? `more than ${low}` : `at least ${low}`);
  }
  if (typeof high === "number") {
    bounds.push(schema.maximum === undefined ? `less than ${high}` : `at most ${high}`);
  }
  const kind = isInteger ? "A whole number" : "A number";
  const parse = (text) => {
    const trimmed = text.trim();
    if (!/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(trimmed) || !Number.isFinite(Number(trimmed))) {
      throw new Error(`${kind} is needed.`);
    }
    const value = Number(trimmed);
    if (isInteger && !Number.isInteger(value)) {
      throw new Error("A whole number is needed.");
    }
    if (isInteger && !Number.isSafeInteger(value)) {
      throw new Error("This number is too large to be exact here.");
    }
    const isTooLow = value < (schema.minimum ?? -Infinity) || value <= (schema.exclusiveMinimum ?? -Infinity);
    const isTooHigh = value > (schema.maximum ?? Infinity) || value >= (schema.exclusiveMaximum ?? Infinity);
    if (isTooLow || isTooHigh) {
      throw new Error(`The number must be ${bounds.join(" and ")}.`);
    }
    return value;
  };
  return controlField(control, schema, at, `${[kind, ...bounds].join(", ")}.`, parse, String);
}

function booleanField(schema, at) {
  if (!at.isRequired && typeof schema.default !== "boolean") {
    return choiceField([{ value: true, title: "yes" }, { value: false, title: "no" }], schema, at);
  }
  const control = element("input", { type: "checkbox" });
  const initial = schema.default === true;
  control.checked = initial;
  return {
    element: row(control, schema, at).element,
    isChanged: () => control.checked !== initial,
    fill(value) { control.checked = value === true; },
    read: () => control.checked,
  };
}

function choiceField(choices, schema, at) {
  const isFixed = choices.length === 1 && "const" in schema;
  const control = element(
    "select",
    {},
    ...(isFixed && at.isRequired ? [] : [element("option", { value: "" }, at.isRequired ? "Choose…" : "(left out)")]),
    ...choices.map((choice, index) => element("option", { value: String(index) }, choice.title)),
  );
  const indexOf = (value) => {
    const index = choices.findIndex((choice) => same(choice.value, value));
    return index < 0 ? "" : String(index);
  };
  return controlField(control, schema, at, "", (index) => choices[Number(index)].value, indexOf);
}

function jsonField(schema, at) {
  const control = element("textarea", { rows: "4", spellcheck: "false", class: "field-json" });
  const parse = (text) => {
    let value;
    try {
      value = JSON.parse(text);
    } catch (error) {
      throw new Error(`This is not JSON: ${error.message}`);
    }
    if (at.depth === 0 && !isObject(value)) {
      throw new Error("A JSON object is needed: {…}.");
    }
    return value;
  };
  const shownSchema = isObject(schema) ? schema : {};
  const format = (value) => JSON.stringify(value, null, 2);
  const field = { ...controlField(control, shownSchema, at, "As JSON.", parse, format), isJson: true };
  if (at.depth === 0) {
    control.value = control.value || "{}";
  } else if (Object.keys(shownSchema).some((key) => !["description", "title", "default", "isNullable"].includes(key))) {
    const text = element("pre", { tabindex: "0" }, JSON.stringify(shownSchema, null, 2));
    field.element.append(element("details", {}, element("summary", {}, `Schema of ${at.label}`), text));
  }
  return field;
}

function objectField(schema, at) {
  const required = new Set(Array.isArray(schema.required) ? schema.required : []);
  const properties = Object.entries(schema.properties || {});
  const fields = properties.map(([name, inner]) => [
    name,
    fieldOf(inner, { ...at, name, label: name, isRequired: required.has(name), isItem: false, depth: at.depth + 1 }),
  ]);
  const isTop = at.depth === 0;
  const help = typeof schema.description === "string" && !isTop ? schema.description : "";
  const holder = element(
    isTop ? "div" : "fieldset",
    { class: isTop ? "fields" : "fields field-group" },
    ...(isTop ? [] : [element("legend", {}, ...labelParts(schema, at))]),
    ...(help ? [element("p", { class: "field-help" }, help)] : []),
    ...fields.map(([, field]) => field.element),
  );
  const field = {
    element: holder,
    isEmpty: fields.length === 0,
    isChanged: () => fields.some(([, inner]) => inner.isChanged()),
    fill(value) {
      for (const [name, inner] of fields) {
        inner.fill(isObject(value) && Object.hasOwn(value, name) ? value[name] : undefined);
      }
    },
    read(errors) {
      if (!at.isRequired && !this.isChanged()) {
        return undefined;
      }
      // Without a prototype, for a property may have any name.
      const value = Object.create(null);
      for (const [name, inner] of fields) {
        const part = inner.read(errors);
        if (part !== undefined) {
          value[name] = part;
        }
      }
      return value;
    },
  };
  if (isObject(schema.default)) {
    field.fill(schema.default);
  }
  return field;
}

function arrayField(schema, at) {
  const items = resolved(schema.items, at.whole.root);
  const choices = items && choicesOf(items);
  return choices ? ticksField(choices, schema, at) : listField(schema, at);
}

function sizeError(schema, size) {
  if (size < (schema.minItems ?? 0)) {
    return `Enter at least ${schema.minItems} (${size} now).`;
  }
  if (size > (schema.maxItems ?? Infinity)) {
    return `Enter at most ${schema.maxItems} (${size} now).`;
  }
  return "";
}

/** The frame of a field that consists of several controls. */
function group(schema, at, ...children) {
  const message = element("p", { class: "field-error", role: "alert" });
  const help = typeof schema.description === "string" ? schema.description : "";
  const holder = element(
    "fieldset",
    { class: "fields field-group" },
    element("legend", {}, ...labelParts(schema, at)),
    ...(help ? [element("p", { class: "field-help" }, help)] : []),
    ...children,
    message,
  );
  return { holder, message };
}

function ticksField(choices, schema, at) {
  const boxes = choices.map(() => element("input", { type: "checkbox" }));
  const ticks = boxes.map((box, index) => element("label", { class: "field-choice" }, box, ` ${choices[index].title}`));
  const { holder, message } = group(schema, at, ...ticks);
  const initial = Array.isArray(schema.default) ? schema.default : [];
  const field = {
    element: holder,
    isChanged: () => !same(chosen(), choices.map(({ value }) => value).filter((value) => includes(initial, value))),
    fill(value) {
      const wanted = Array.isArray(value) ? value : [];
      boxes.forEach((box, index) => { box.checked = includes(wanted, choices[index].value); });
    },
    read(errors) {
      const value = chosen();
      if (!value.length && !at.isRequired) {
        return initial.length ? [] : undefined;
      }
      const problem = sizeError(schema, value.length);
      return problem ? refuse(errors, boxes[0], message, problem) : value;
    },
  };
  function chosen() {
    return choices.filter((_, index) => boxes[index].checked).map((choice) => choice.value);
  }
  function includes(list, value) {
    return list.some((other) => same(other, value));
  }
  field.fill(initial);
  return field;
}

function listField(schema, at) {
  let rows = [];
  const list = element("ol", { class: "field-items" });
  const add = element("button", { type: "button", class: "button" }, `Add to ${at.label}`);
  const { holder, message } = group(schema, at, list, add);
  add.addEventListener("click", () => {
    const added = append();
    added.field.element.querySelector("input, textarea, select, button")?.focus();
  });

  function append() {
    const label = `${at.label} ${rows.length + 1}`;
    const place = { ...at, name: label, label, isRequired: true, isItem: true, depth: at.depth + 1 };
    const field = fieldOf(schema.items, place);
    const remove = element("button", { type: "button", class: "button field-remove" }, `Remove ${label}`);
    const item = element("li", {}, field.element, remove);
    const entry = { field, item };
    remove.addEventListener("click", () => {
      rows = rows.filter((other) => other !== entry);
      item.remove();
      add.focus();
    });
    rows.push(entry);
    list.append(item);
    return entry;
  }

  const initial = Array.isArray(schema.default) ? schema.default : [];
  const field = {
    element: holder,
    isChanged: () => rows.length !== initial.length || rows.some((entry) => entry.field.isChanged()),
    fill(value) {
      rows = [];
      list.replaceChildren();
      for (const part of Array.isArray(value) ? value : []) {
        append().field.fill(part);
      }
    },
    read(errors) {
      if (!rows.length && !at.isRequired) {
        return undefined;
      }
      const value = rows.map((entry) => entry.field.read(errors));
      const problem = sizeError(schema, rows.length);
      return problem ? refuse(errors, add, message, problem) : value;
    },
  };
  field.fill(initial);
  return field;
}
