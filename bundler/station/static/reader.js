// The article beside the conversation: a sandboxed frame on another origin, at the passage.
import { byId, el } from "/static/dom.js";

let opener = null;

function frame(src, title) {
  return el("iframe", { sandbox: "allow-popups", src, title, referrerpolicy: "no-referrer" });
}

// Opens what a /read/… address names; falls back to following the address.
export async function openArticle(href) {
  const match = /^\/read\/([^/]+)\/([^?]*)(?:\?passage=(\d+-\d+))?$/.exec(href);
  if (!match) return;
  const [corpus, path] = [match[1], match[2]].map(decodeURIComponent);
  const query = new URLSearchParams({ corpus, path, passage: match[3] ?? "" });
  let opened;
  try {
    opened = await (await fetch(`/api/open?${query}`)).json();
  } catch {
    opened = { problem: "The station does not answer." };
  }
  opener = document.activeElement;
  const body = byId("reader-body");
  body.replaceChildren(
    opened.src ? frame(opened.src, opened.title) : el("p", { class: "note" }, opened.problem),
  );
  byId("reader-full").href = opened.href ?? href;
  byId("reader").hidden = false;
  byId("desk").classList.add("with-reader");
  byId("reader-close").focus();
}

export function closeArticle() {
  if (byId("reader").hidden) return false;
  byId("reader").hidden = true;
  byId("reader-body").replaceChildren();
  byId("desk").classList.remove("with-reader");
  opener?.focus?.();
  return true;
}

export function watchReader() {
  byId("reader-close").addEventListener("click", closeArticle);
  byId("reader-back").addEventListener("click", () => history.back());
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href^='/read/']");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    openArticle(link.getAttribute("href"));
  });
}
