// Signing in; the token may come after # in the address, where it is not sent to anybody.
import { byId } from "/static/dom.js";

async function signIn(token) {
  const answer = await fetch("/sign-in", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ token }),
  });
  if (answer.ok) location.replace("/");
  else byId("problem").textContent = (await answer.json()).error;
}

byId("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  signIn(byId("token").value);
});

const given = location.hash.startsWith("#token=") ? decodeURIComponent(location.hash.slice(7)) : "";
if (given) {
  history.replaceState(null, "", location.pathname);
  signIn(given);
}
