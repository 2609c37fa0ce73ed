// Before the first paint: the light or dark that was chosen last, else the system's.
const kept = (() => {
  try {
    return localStorage.getItem("station.theme");
  } catch {
    return null; // Storage is off; the system's choice holds.
  }
})();
if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
