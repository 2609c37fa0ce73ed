// Suggestions by title while typing; without this script the form works all the same.
import "/static/station.js";
import { byId, el } from "/static/dom.js";

const DELAY_MS = 150;
const input = byId("q");
const list = byId("suggestions");
let timer = 0;
let asked = 0;
let chosen = -1;

function close() {
  list.hidden = true;
  chosen = -1;
  input.setAttribute("aria-expanded", "false");
  input.removeAttribute("aria-activedescendant");
}

function show(items) {
  list.replaceChildren(
    ...items.map((item, n) =>
      el("li", { role: "option", id: `suggestion-${n}`, "aria-selected": "false" },
        el("a", { href: item.href, tabindex: "-1" }, el("b", {}, item.title), el("span", {}, item.corpus_title))),
    ),
  );
  list.hidden = !items.length;
  chosen = -1;
  input.setAttribute("aria-expanded", String(items.length > 0));
}

async function suggest() {
  const query = input.value.trim();
  const mine = ++asked;
  if (query.length < 2) return close();
  const corpus = byId("corpus")?.value ?? "";
  try {
    const answer = await fetch(`/api/suggest?${new URLSearchParams({ q: query, corpus })}`);
    if (mine === asked && answer.ok) show(await answer.json());
  } catch {
    close(); // The station is gone; the status line says so.
  }
}

function move(step) {
  const options = [...list.children];
  if (!options.length) return;
  chosen = (chosen + step + options.length + 1) % (options.length + 1);
  options.forEach((option, n) => option.setAttribute("aria-selected", String(n === chosen)));
  if (chosen < options.length) input.setAttribute("aria-activedescendant", options[chosen].id);
  else input.removeAttribute("aria-activedescendant");
}

input.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(suggest, DELAY_MS);
});
input.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    // A search field would also be emptied: only when there is nothing to close.
    if (!list.hidden) event.preventDefault();
    close();
  }
  else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    move(event.key === "ArrowDown" ? 1 : -1);
  } else if (event.key === "Enter" && list.children[chosen]) {
    event.preventDefault();
    list.children[chosen].querySelector("a").click();
  }
});
document.addEventListener("click", (event) => {
  if (!event.target.closest(".combo")) close();
});
byId("search-form").addEventListener("submit", () => {
  asked += 1;
  clearTimeout(timer);
});
