// Conversations, kept in this browser only: one entry of localStorage each.

const bundle = document.querySelector("meta[name=station-bundle]").content;
const PREFIX = `station.conversation.${bundle}.`;
const ROLES = new Set(["user", "assistant"]);

export function newConversation() {
  const now = Date.now();
  const random = crypto.getRandomValues(new Uint32Array(2));
  return { id: `${now.toString(36)}${random[0].toString(36)}${random[1].toString(36)}`, title: "", changed: now, messages: [] };
}

export function all() {
  const found = [];
  for (let n = 0; n < localStorage.length; n += 1) {
    const key = localStorage.key(n);
    if (key.startsWith(PREFIX)) {
      const one = read(key);
      if (one) found.push(one);
    }
  }
  return found.sort((a, b) => b.changed - a.changed);
}

export const load = (id) => read(PREFIX + id);

function read(key) {
  try {
    return checked(JSON.parse(localStorage.getItem(key)));
  } catch {
    return null; // Damaged, or another program's: not shown, not deleted.
  }
}

// Returns why it could not be kept, or nothing.
export function save(conversation) {
  conversation.changed = Date.now();
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    return "";
  } catch {
    return "This browser has no room left for conversations. Save them to a file and delete old ones.";
  }
}

export function remove(id) {
  localStorage.removeItem(PREFIX + id);
}

export function find(text) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return all();
  return all().filter((one) =>
    [one.title, ...one.messages.map((message) => message.content)].some((part) => part.toLowerCase().includes(wanted)),
  );
}

// A stored or loaded conversation is checked field by field; only known ones are taken over.
function checked(value) {
  if (!value || typeof value.id !== "string" || !/^[a-z0-9]{1,60}$/.test(value.id) || !Array.isArray(value.messages)) return null;
  const messages = value.messages.filter((m) => m && ROLES.has(m.role) && typeof m.content === "string");
  return {
    id: value.id,
    title: typeof value.title === "string" ? value.title.slice(0, 200) : "",
    changed: Number.isFinite(value.changed) ? value.changed : Date.now(),
    messages: messages.map((m) => ({
      role: m.role,
      content: m.content,
      sources: Array.isArray(m.sources) ? m.sources.filter(isSource) : [],
      mark: typeof m.mark === "string" ? m.mark.slice(0, 40) : "",
      finish: typeof m.finish === "string" ? m.finish.slice(0, 40) : "",
    })),
  };
}

function isSource(s) {
  return (
    s && ["corpus", "corpus_title", "path", "title", "snippet"].every((key) => typeof s[key] === "string") &&
    Number.isInteger(s.number) && Array.isArray(s.passage) && s.passage.length === 2 && s.passage.every(Number.isInteger)
  );
}

export function exported(conversations) {
  return JSON.stringify({ format: "station-conversations", version: 1, conversations }, null, 1);
}

// Returns how many were taken over. Those that are here already come in as copies.
export function imported(text) {
  const value = JSON.parse(text);
  const list = Array.isArray(value?.conversations) ? value.conversations : [value];
  let count = 0;
  for (const item of list) {
    const one = checked(item);
    if (!one) continue;
    if (localStorage.getItem(PREFIX + one.id) !== null) one.id = newConversation().id;
    if (save(one) === "") count += 1;
  }
  return count;
}

export function markdown(conversation) {
  const parts = [`# ${conversation.title || "Conversation"}`];
  for (const message of conversation.messages) {
    parts.push(message.role === "user" ? `## ${message.content}` : message.content);
    if (message.sources?.length) {
      parts.push(message.sources.map((s) => `[${s.number}] ${s.title} (${s.corpus_title})`).join("  \n"));
    }
  }
  return `${parts.join("\n\n")}\n`;
}
