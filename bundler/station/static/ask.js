// The chat page: asking, showing what comes, stopping, asking again, and the list of conversations.
import "/static/station.js";
import { byId, button, copy, download, el, icon, setRendered } from "/static/dom.js";
import * as store from "/static/conversations.js";
import { closeArticle, watchReader } from "/static/reader.js";
import { events } from "/static/stream.js";

const messages = byId("messages");
const question = byId("question");
const empty = byId("empty");
let current = store.newConversation();
let running = null; // AbortController of the answer being made

// -- one message -------------------------------------------------------------------------------

function userMessage(message, index) {
  const text = el("div", { class: "said" }, message.content);
  const actions = el("div", { class: "actions" },
    button("edit", "Edit", () => edit(node, message, index)),
    button("copy", "Copy", () => copy(message.content)));
  const node = el("article", { class: "message user", "aria-label": "You" }, text, actions);
  return node;
}

function answerMessage(message, index) {
  const body = el("div", { class: "body" });
  const sources = el("div", { class: "sources" });
  const actions = el("div", { class: "actions" });
  const note = el("p", { class: "progress", role: "status" });
  const node = el("article", { class: "message answer", "aria-label": "Answer" }, body, note, sources, actions);
  return { node, body, sources, actions, note, message, index, tail: null };
}

function showSources(view, cited) {
  const items = view.message.sources ?? [];
  if (!items.length) return view.sources.replaceChildren();
  const used = cited ? items.filter((item) => cited.includes(item.number)) : items;
  const rest = items.filter((item) => !used.includes(item));
  const parts = [];
  const heading = cited ? (used.length === 1 ? "Source" : "Sources") : "Found in the library";
  if (used.length) parts.push(el("h3", {}, heading), el("ol", {}, ...used.map(sourceCard)));
  if (rest.length) {
    // An answer that names no source is the one to hold against what was read: nothing is folded away.
    const label = used.length
      ? `${rest.length} more passage${rest.length === 1 ? " was" : "s were"} read`
      : "The answer names no source. Check it against what was read:";
    parts.push(el("details", { open: !used.length }, el("summary", {}, label), el("ol", {}, ...rest.map(sourceCard))));
  }
  view.sources.replaceChildren(...parts);
}

function sourceCard(item) {
  const href = `/read/${encodeURIComponent(item.corpus)}/${item.path.split("/").map(encodeURIComponent).join("/")}?passage=${item.passage.join("-")}`;
  return el("li", { value: item.number },
    el("a", { class: "source", href },
      el("span", { class: "number", "aria-hidden": "true" }, String(item.number)),
      el("span", { class: "what" },
        el("b", {}, item.title), el("span", { class: "corpus" }, item.corpus_title),
        el("span", { class: "snippet" }, item.snippet))));
}

function finish(view) {
  const { message } = view;
  view.note.replaceChildren();
  view.node.classList.remove("growing");
  if (message.mark) view.node.dataset.mark = message.mark;
  const marks = { unsourced: "Answered without sources, from the model’s memory. Check it.", nothing: "" };
  if (marks[message.mark]) view.note.textContent = marks[message.mark];
  if (message.finish === "stopped") view.note.textContent = "Stopped.";
  if (message.finish === "length") view.note.textContent = "The answer was cut: the model’s context is full.";
  if (message.finish === "error") view.note.classList.add("problem");
  view.body.querySelectorAll("pre").forEach((pre) => {
    pre.tabIndex = 0;
    pre.append(button("copy", "Copy", () => copy(pre.querySelector("code").textContent), { class: "quiet copy-code" }));
  });
  showSources(view, citedIn(view.body));
  const last = view.index === current.messages.length - 1;
  view.actions.replaceChildren(
    button("copy", "Copy", () => copy(message.content)),
    ...(last ? [button("again", "Ask again", () => again())] : []),
  );
}

const citedIn = (body) => [...body.querySelectorAll("a.cite")].map((a) => Number(a.dataset.source));

// -- an answer as it comes -----------------------------------------------------------------------

function take(view, event) {
  const { message } = view;
  switch (event.type) {
    case "queue":
      view.note.textContent = `Waiting for the model: number ${event.position} in line.`;
      break;
    case "waiting":
      view.note.textContent = event.text;
      break;
    case "nothing":
      message.mark = "unsourced";
      view.note.textContent = event.text;
      break;
    case "sources":
      message.sources = event.items.map(({ snippet_html, href, ...kept }) => kept);
      showSources(view, null);
      break;
    case "text":
      view.note.textContent = "";
      // Rendering drops a space at the end; the words must not grow together.
      view.tail ??= lastParagraph(view.body).appendChild(el("span", { class: "tail" }, /\s$/.test(message.content) ? " " : ""));
      message.content += event.text;
      view.tail.append(event.text);
      break;
    case "html":
      setRendered(view.body, event.html);
      view.tail = null;
      break;
    case "done":
      if (event.finish === "nothing") {
        message.content = "Nothing found in the corpora.";
        message.mark = "nothing";
        view.body.replaceChildren(nothingFound(view));
      } else setRendered(view.body, event.html);
      message.finish = event.finish;
      break;
    case "error":
      message.finish = "error";
      message.mark = "";
      view.note.textContent = event.text;
      break;
  }
}

// Text that comes after the last rendering goes on in its last paragraph, not in a new one.
const lastParagraph = (body) => (body.lastElementChild?.tagName === "P" ? body.lastElementChild : body);

function nothingFound(view) {
  const asked = current.messages[view.index - 1]?.content ?? "";
  return el("p", { class: "nothing" }, "Nothing found in the corpora. Try other words, or ",
    el("a", { href: `/search?q=${encodeURIComponent(asked.slice(0, 200))}` }, "search the library"), ".");
}

async function answer() {
  const asked = current.messages.at(-1);
  const history = current.messages.slice(0, -1).filter((m) => m.finish !== "error" && m.mark !== "nothing");
  const message = { role: "assistant", content: "", sources: [], mark: "", finish: "" };
  const conversation = current;
  conversation.messages.push(message);
  const view = answerMessage(message, conversation.messages.length - 1);
  view.node.classList.add("growing");
  messages.append(view.node);
  view.note.textContent = byId("use-library").checked ? "Looking in the library…" : "Asking the model…";
  follow(true);
  setRunning(new AbortController());
  try {
    const body = {
      question: asked.content,
      history: history.map(({ role, content }) => ({ role, content })),
      library: byId("use-library").checked,
      unsourced: byId("unsourced").checked,
      corpus: byId("corpus")?.value ?? "",
    };
    for await (const event of events("/api/chat", body, running.signal)) {
      take(view, event);
      follow();
    }
    if (!message.finish) throw new Error("The station stopped answering.");
  } catch (error) {
    message.finish = error.name === "AbortError" ? "stopped" : "error";
    if (message.finish === "error") view.note.textContent = error.message;
    if (message.content) await renderAgain([view]);
  }
  const failure = message.finish === "error" ? view.note.textContent : "";
  setRunning(null);
  finish(view);
  if (failure) view.note.textContent = failure;
  keep(conversation);
  follow();
  question.focus({ preventScroll: true });
}

// Keep the newest text in sight, unless the person has scrolled up to read.
let following = true;
messages.addEventListener("scroll", () => {
  following = messages.scrollHeight - messages.scrollTop - messages.clientHeight < 80;
}, { passive: true });
function follow(always = false) {
  if (always) following = true;
  if (following) messages.scrollTop = messages.scrollHeight;
}

function setRunning(controller) {
  running = controller;
  byId("stop").hidden = !controller;
  byId("send").hidden = Boolean(controller);
  byId("desk").classList.toggle("busy", Boolean(controller));
}

function ask(text) {
  if (running || !text.trim()) return;
  if (!current.title) current.title = text.trim().split("\n")[0].slice(0, 80);
  const message = { role: "user", content: text.trim(), sources: [], mark: "", finish: "" };
  current.messages.push(message);
  refreshActions();
  empty.hidden = true;
  messages.append(userMessage(message, current.messages.length - 1));
  question.value = "";
  grow();
  keep(current);
  answer();
}

function again() {
  if (running || current.messages.at(-1)?.role !== "assistant") return;
  current.messages.pop();
  messages.lastElementChild.remove();
  answer();
}

// Only the last answer can be asked again.
function refreshActions() {
  messages.querySelectorAll(".answer .actions").forEach((actions) => {
    [...actions.children].slice(1).forEach((one) => one.remove());
  });
}

function edit(node, message, index) {
  if (running) return;
  const area = el("textarea", { class: "edit", "aria-label": "Edit your question" });
  area.value = message.content;
  const done = () => show(current);
  const send = () => {
    current.messages.length = index;
    if (!index) current.title = "";
    show(current);
    ask(area.value);
  };
  const form = el("div", { class: "editing" }, area,
    el("div", { class: "actions" },
      el("button", { type: "button", class: "primary", onclick: send }, "Ask"),
      el("button", { type: "button", onclick: done }, "Cancel")));
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    } else if (event.key === "Escape") {
      event.stopPropagation();
      done();
    }
  });
  node.replaceChildren(form);
  area.style.height = `${area.scrollHeight + 4}px`;
  area.focus();
}

// -- conversations -------------------------------------------------------------------------------

async function renderAgain(views) {
  const wanted = views.map(({ message }) => ({
    content: message.content,
    sources: (message.sources ?? []).map(({ corpus, path, title, passage }) => ({ corpus, path, title, passage })),
  }));
  try {
    const reply = await fetch("/api/render", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ messages: wanted }),
    });
    if (!reply.ok) throw new Error();
    const { html } = await reply.json();
    views.forEach((view, n) => setRendered(view.body, html[n]));
  } catch {
    views.forEach((view) => view.body.replaceChildren(el("p", { class: "plain" }, view.message.content)));
  }
}

async function show(conversation) {
  running?.abort();
  current = conversation;
  [...messages.children].forEach((child) => child !== empty && child.remove());
  empty.hidden = conversation.messages.length > 0;
  const views = [];
  conversation.messages.forEach((message, index) => {
    if (message.role === "user") return messages.append(userMessage(message, index));
    const view = answerMessage(message, index);
    messages.append(view.node);
    views.push(view);
  });
  mark();
  for (let n = 0; n < views.length; n += 100) await renderAgain(views.slice(n, n + 100));
  if (current !== conversation) return;
  views.forEach((view) => {
    if (view.message.mark === "nothing") view.body.replaceChildren(nothingFound(view));
    finish(view);
  });
  follow(true);
}

function keep(conversation) {
  const problem = store.save(conversation);
  if (problem) {
    byId("warnings").hidden = false;
    byId("warnings").replaceChildren(el("p", {}, problem));
  }
  if (conversation === current) history.replaceState(null, "", `#${conversation.id}`);
  listAll();
}

function listAll() {
  const found = store.find(byId("find").value);
  byId("list").replaceChildren(...found.map(conversationRow));
  if (!found.length) {
    const text = byId("find").value ? "None found." : "Conversations are kept in this browser.";
    byId("list").append(el("li", { class: "hint" }, text));
  }
  mark();
}

function conversationRow(one) {
  const open = el("button", { type: "button", class: "open", onclick: () => { show(store.load(one.id)); drawer(false); } }, one.title || "Conversation");
  const more = el("details", { class: "row-menu" },
    el("summary", { "aria-label": `More for ${one.title}`, title: "More" }, icon("more")),
    el("div", { class: "menu-items" },
      el("button", { type: "button", onclick: () => rename(row, one) }, "Rename"),
      el("button", { type: "button", onclick: () => download(`${fileName(one)}.md`, store.markdown(one), "text/markdown") }, "Save as text"),
      el("button", { type: "button", onclick: () => download(`${fileName(one)}.json`, store.exported([one]), "application/json") }, "Save as file"),
      el("button", { type: "button", class: "danger", onclick: (event) => discard(event.currentTarget, one) }, "Delete")));
  const row = el("li", { "data-id": one.id }, open, more);
  return row;
}

const fileName = (one) => (one.title || "conversation").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60);

function rename(row, one) {
  const input = el("input", { class: "rename", "aria-label": "New name", value: one.title, maxlength: "200" });
  const done = (take) => {
    input.removeEventListener("blur", done);
    if (take === true && input.value.trim()) {
      const target = one.id === current.id ? current : one;
      target.title = input.value.trim();
      store.save(target);
    }
    listAll();
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") done(true);
    else if (event.key === "Escape") done(false);
    event.stopPropagation();
  });
  input.addEventListener("blur", () => done(true), { once: true });
  row.replaceChildren(input);
  input.select();
}

// The first press asks, the second deletes: no dialog to read under stress.
function discard(pressed, one) {
  if (!pressed.dataset.sure) {
    pressed.dataset.sure = "yes";
    pressed.textContent = "Really delete?";
    return;
  }
  store.remove(one.id);
  if (one.id === current.id) fresh();
  listAll();
}

function mark() {
  byId("list").querySelectorAll("li[data-id]").forEach((row) => {
    row.querySelector(".open")?.toggleAttribute("aria-current", row.dataset.id === current.id);
  });
}

function fresh() {
  history.replaceState(null, "", location.pathname);
  show(store.newConversation());
  drawer(false);
  question.focus();
}

function drawer(open) {
  byId("desk").classList.toggle("drawer-open", open);
  byId("open-conversations").setAttribute("aria-expanded", String(open));
  if (open) byId("new").focus();
}

// -- the page ------------------------------------------------------------------------------------

function grow() {
  question.style.height = "auto";
  question.style.height = `${Math.min(question.scrollHeight, innerHeight * 0.4)}px`;
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  ask(question.value);
});
byId("stop").addEventListener("click", () => running?.abort());
question.addEventListener("input", grow);
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask(question.value);
  }
});
empty.addEventListener("click", (event) => {
  const asked = event.target.closest("[data-question]")?.dataset.question;
  if (asked) ask(asked);
});
byId("new").addEventListener("click", fresh);
byId("find").addEventListener("input", listAll);
byId("open-conversations").addEventListener("click", () => drawer(!byId("desk").classList.contains("drawer-open")));
byId("desk").addEventListener("click", (event) => {
  if (event.target === byId("desk")) drawer(false);
});
byId("export-all").addEventListener("click", () => download("conversations.json", store.exported(store.all()), "application/json"));
byId("import").addEventListener("click", () => byId("import-file").click());
byId("import-file").addEventListener("change", async (event) => {
  const file = event.target.files[0];
  event.target.value = "";
  if (!file) return;
  let count = 0;
  try {
    count = store.imported(await file.text());
  } catch {
    count = 0; // Not JSON; said below.
  }
  listAll();
  byId("warnings").hidden = count > 0;
  if (!count) byId("warnings").replaceChildren(el("p", {}, `${file.name} holds no conversations.`));
});
byId("keys").addEventListener("click", () => byId("keys-dialog").showModal());

const typing = (target) => target.matches?.("input, textarea, select, [contenteditable]");
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !byId("keys-dialog").open) {
    if (running) running.abort();
    else if (!closeArticle()) drawer(false);
  } else if (event.altKey && !event.ctrlKey && !event.metaKey) {
    const action = { KeyN: fresh, KeyF: () => { drawer(true); byId("find").focus(); }, KeyR: again }[event.code];
    if (action) {
      event.preventDefault();
      action();
    }
  } else if (!typing(event.target) && !event.ctrlKey && !event.metaKey) {
    if (event.key === "/") {
      event.preventDefault();
      question.focus();
    } else if (event.key === "?") byId("keys-dialog").showModal();
  }
});

// Chat may come up, or fail, after the page was opened.
document.addEventListener("station-chat", ({ detail }) => {
  byId("composer").hidden = detail.chat === "off";
  const off = byId("chat-off");
  if (detail.chat === "off" && !off && !current.messages.length) location.reload();
  else if (detail.chat !== "off" && off) location.reload();
});

for (const name of ["use-library", "unsourced"]) {
  const box = byId(name);
  try {
    const kept = localStorage.getItem(`station.${name}`);
    if (kept) box.checked = kept === "yes";
    box.addEventListener("change", () => localStorage.setItem(`station.${name}`, box.checked ? "yes" : "no"));
  } catch {
    // Storage is off: the boxes start as they are.
  }
}

watchReader();
listAll();
const kept = store.load(location.hash.slice(1));
if (kept) show(kept);
else if (matchMedia("(hover: hover)").matches) question.focus();
const asked = new URLSearchParams(location.search).get("ask");
if (asked) {
  history.replaceState(null, "", location.pathname);
  question.value = asked.slice(0, 2000);
  grow();
}
