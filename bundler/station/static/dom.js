// Making elements, and the one place where HTML from the station becomes part of the page.

// Only HTML that the station rendered and cleaned goes through here; see markup.py.
const policy = window.trustedTypes
  ? window.trustedTypes.createPolicy("station", { createHTML: (html) => html })
  : { createHTML: (html) => html };

export function setRendered(element, html) {
  element.innerHTML = policy.createHTML(html);
}

export const byId = (id) => document.getElementById(id);

// el("a", { class: "x", href: "/", onclick: f }, "text", child): attributes, listeners, children.
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", "i");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function button(name, label, onclick, extra = {}) {
  return el("button", { type: "button", class: "quiet", title: label, onclick, ...extra }, icon(name), el("span", {}, label));
}

// Copy text; the old way where the clipboard is not offered (plain http beyond this computer).
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = el("textarea", { class: "visually-hidden" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

export function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = el("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
