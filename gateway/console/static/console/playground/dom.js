// Makes elements. Text always becomes a text node: nothing that a server sends is ever read as HTML.

/** An element with attributes and children. A child is a node or a text. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) {
    made.setAttribute(attribute, value);
  }
  made.append(...children);
  return made;
}
