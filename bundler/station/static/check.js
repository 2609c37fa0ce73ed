// Check, repair and selftest: one at a time, followed until it ends.
import { byId, el } from "/static/dom.js";

const POLL_MS = 700;
let following = false;

async function post(address, body) {
  const answer = await fetch(address, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  return { ok: answer.ok, said: await answer.json() };
}

function hideAsking() {
  byId("check-sure").hidden = true;
}

function showRunning(now) {
  byId("check-now").hidden = now.state !== "running";
  for (const button of document.querySelectorAll("#check-kinds button")) {
    button.disabled = now.state === "running";
  }
  if (now.state !== "running") return;
  const bar = byId("check-bar");
  if (now.share == null) bar.removeAttribute("value");
  else bar.value = now.share;
  byId("check-words").textContent = now.words;
}

function showResult(now) {
  const box = byId("check-result");
  const result = now.state === "running" ? null : now.result;
  box.hidden = !result && now.state !== "cancelled";
  if (box.hidden) return;
  if (!result) {
    box.replaceChildren(el("p", {}, "It was stopped. Nothing is half done."));
    return;
  }
  const lines = el("ul", {}, ...result.lines.map((line) => el("li", {}, line)));
  box.replaceChildren(
    el("h3", { class: result.good ? "good" : "problem" }, result.headline),
    ...(result.lines.length ? [lines] : []),
    ...(result.next_step ? [el("p", { class: "note" }, `Next: ${result.next_step}`)] : []),
  );
}

function show(now) {
  showRunning(now);
  showResult(now);
}

function showProblem(text) {
  const box = byId("check-result");
  box.hidden = false;
  box.replaceChildren(el("p", { class: "problem" }, text));
}

async function follow() {
  if (following) return;
  following = true;
  try {
    for (;;) {
      const answer = await fetch("/api/check");
      const now = await answer.json();
      show(now);
      if (now.state !== "running") break;
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  } catch {
    showProblem("The station was closed. Start it again to go on.");
  } finally {
    following = false;
  }
}

async function start(what, confirmed = false) {
  hideAsking();
  try {
    const { ok, said } = await post("/api/check", { what, confirmed });
    if (!ok) return showProblem(said.error);
    show(said);
    await follow();
  } catch {
    showProblem("The station was closed. Start it again to go on.");
  }
}

byId("check-kinds").addEventListener("click", (event) => {
  const what = event.target.closest("button")?.dataset.what;
  if (!what) return;
  if (what !== "repair") return void start(what);
  byId("check-sure").hidden = false;
  byId("check-yes").focus();
});
byId("check-yes").addEventListener("click", () => start("repair", true));
byId("check-no").addEventListener("click", hideAsking);
byId("check-stop").addEventListener("click", async () => {
  const { said } = await post("/api/check/stop", {});
  show(said);
});

follow();
