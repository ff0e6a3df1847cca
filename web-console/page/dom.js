// Small tools to build and update the page. All text is set as text, never as markup: names come
// from network functions, which are not trusted.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children (elements or texts). */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** An SVG element. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Sets a text only if it differs, so that a selection survives and nothing is laid out in vain. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Sets an attribute only if it differs. */
export function setAttribute(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/**
 * Makes `parent` show one child per line of `lines`, an array of {text, class, href, hint}; children stay
 * the same nodes as long as their number and kinds do not change. A line with `href` is a link; `hint` says
 * what it leads to.
 */
export function setLines(parent, lines) {
  while (parent.childElementCount > lines.length) parent.lastElementChild.remove();
  lines.forEach((line, at) => {
    const tag = line.href ? "A" : "SPAN";
    let node = parent.children[at];
    if (node?.tagName !== tag) {
      const next = el(tag);
      if (node) node.replaceWith(next);
      else parent.append(next);
      node = next;
    }
    setText(node, line.text);
    setAttribute(node, "class", line.class ?? "");
    if (line.href) setLink(node, line);
  });
}

/** Where a link leads; those who do not see it hear what for. */
export function setLink(node, { text, href, hint }) {
  setAttribute(node, "href", href);
  setAttribute(node, "title", hint);
  setAttribute(node, "aria-label", `${text}: ${hint}`);
}

/**
 * Keeps the children of `parent` in step with `items`: one node per item, found again by `keyOf`,
 * made by `make(item)` and brought up to date by `update(node, item)`.
 */
export function keep(parent, items, keyOf, make, update) {
  const before = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  items.forEach((item, at) => {
    const key = String(keyOf(item));
    let node = before.get(key);
    before.delete(key);
    if (!node) {
      node = make(item);
      node.dataset.key = key;
    }
    if (parent.children[at] !== node) parent.insertBefore(node, parent.children[at] ?? null);
    update(node, item);
  });
  for (const node of before.values()) node.remove();
}
