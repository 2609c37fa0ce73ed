// What every page has: light or dark, and a status line that stays true.
import { byId, el } from "/static/dom.js";

const POLL_MS = 4000;

function dark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

byId("theme")?.addEventListener("click", () => {
  const theme = dark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("station.theme", theme);
  } catch {
    // Not kept; it holds until the page is left.
  }
});

function show(status) {
  const footer = byId("status");
  byId("status-line").textContent = status.line;
  const before = footer.dataset.chat;
  footer.dataset.chat = status.chat;
  footer.title = status.chat_reason;
  const warnings = byId("warnings");
  warnings.hidden = !status.warnings.length;
  const texts = status.warnings.join("\n");
  if (warnings.dataset.shown !== texts) {
    warnings.replaceChildren(...status.warnings.map((text) => el("p", {}, text)));
    warnings.dataset.shown = texts;
  }
  if (before !== status.chat) document.dispatchEvent(new CustomEvent("station-chat", { detail: status }));
}

async function poll() {
  if (!document.hidden) {
    try {
      const answer = await fetch("/api/status");
      if (answer.ok) show(await answer.json());
    } catch {
      byId("status").dataset.chat = "gone";
      byId("status-line").textContent = "The station was closed. Start it again to go on.";
    }
  }
  setTimeout(poll, POLL_MS);
}

setTimeout(poll, 1000);
