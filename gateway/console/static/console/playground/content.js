// Shows what servers answer with. Texts are text nodes. Images and sounds are shown as data: URLs, if their type is one of
// those below: browsers run no code in these.

import { element } from "./dom.js";

const IMAGES = new Set(["image/png", "image/jpeg", "image/gif", "image/webp"]);
const SOUNDS = new Set(["audio/wav", "audio/x-wav", "audio/mpeg", "audio/mp3", "audio/ogg", "audio/webm", "audio/mp4",
  "audio/aac", "audio/flac"]);
const BASE64 = /^[A-Za-z0-9+/]*={0,2}$/;
const MAX_TEXT = 200_000;
const MAX_MEDIA = 12_000_000;

/** The nodes for a list of content blocks. `read(uri)` is called if the operator wants to read a linked resource. */
export function contentNodes(blocks, read) {
  return (Array.isArray(blocks) ? blocks : [blocks]).map((block) => contentNode(block, read));
}

function contentNode(block, read) {
  switch (block?.type) {
    case "text":
      return textNode(String(block.text), "Text");
    case "image":
      return mediaNode(IMAGES, "img", "Image", block.mimeType, block.data);
    case "audio":
      return mediaNode(SOUNDS, "audio", "Sound", block.mimeType, block.data);
    case "resource":
      return resourceNode(block.resource || {});
    case "resource_link":
      return linkNode(block, read);
    default:
      return jsonNode(block, "Content of another kind");
  }
}

/** The contents of a resource. */
export function resourceNode(resource) {
  const name = `Resource ${resource.uri ?? ""}${resource.mimeType ? ` (${resource.mimeType})` : ""}`;
  if (typeof resource.text === "string") {
    return textNode(resource.text, name);
  }
  const type = plainType(resource.mimeType);
  if (IMAGES.has(type)) {
    return mediaNode(IMAGES, "img", name, resource.mimeType, resource.blob);
  }
  return mediaNode(SOUNDS, "audio", name, resource.mimeType, resource.blob);
}

export function textNode(text, name) {
  const isCut = text.length > MAX_TEXT;
  return framed(
    name,
    element("pre", { tabindex: "0", "aria-label": name }, isCut ? text.slice(0, MAX_TEXT) : text),
    ...(isCut ? [element("p", { class: "help" }, `The first ${MAX_TEXT} of ${text.length} characters are shown.`)] : []),
  );
}

export function jsonNode(value, name) {
  return textNode(JSON.stringify(value, null, 2) ?? "null", name);
}

function linkNode(block, read) {
  const button = element("button", { type: "button", class: "button" }, "Read");
  button.addEventListener("click", () => read(block.uri));
  const title = block.title || block.name || "";
  const about = typeof block.description === "string" ? `: ${block.description}` : "";
  return framed("Link to a resource", element("p", {}, `${title}${about} `, element("code", {}, String(block.uri)), " ", button));
}

function mediaNode(allowed, kind, name, mimeType, data) {
  const type = plainType(mimeType);
  const text = typeof data === "string" ? data.replaceAll(/\s/g, "") : "";
  const about = `${name}${name.includes(type) ? "" : ` (${type || "no type"})`}`;
  const bytes = Math.floor(text.length * 3 / 4);
  if (!allowed.has(type) || !BASE64.test(text) || !text || text.length > MAX_MEDIA) {
    return framed(about, element("p", {}, `${bytes} bytes, which are not shown here.`));
  }
  const source = `data:${type};base64,${text}`;
  const media = kind === "img"
    ? element("img", { src: source, alt: about })
    : element("audio", { src: source, controls: "", "aria-label": about });
  return framed(about, media);
}

function plainType(mimeType) {
  return typeof mimeType === "string" ? mimeType.split(";")[0].trim().toLowerCase() : "";
}

function framed(name, ...children) {
  return element("figure", { class: "content" }, element("figcaption", {}, name), ...children);
}
