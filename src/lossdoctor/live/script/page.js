// What all live pages use. The files of this folder are served as one script, inside one function: see `app.SCRIPTS`.

const root = document.documentElement;
const { page, runs, most, words } = JSON.parse(document.getElementById("data").textContent);
const word = (key, values = {}) => words[root.dataset.lang][key].replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
const by = (id) => document.getElementById(id);
const whole = (n) => n.toLocaleString("en");
const POINTS = 6000;

function remember(what, value) {
  try { localStorage.setItem(`lossdoctor.${what}`, value); } catch { /* storage is switched off */ }
}

// The charts of a page, once it has some.
let charts = { redraw() {}, grown() {}, observe() {}, marked() {} };
