// The list of runs.

function listPage() {
  const table = by("runs"), body = by("rows"), told = new Map(), shown = new Map(), chosen = new Set();
  let sorting = { column: "run", down: false };
  const ORDER = ["growing", "silent", "empty", "unreadable", "ended"];
  const keys = {
    run: (one) => one.run, state: (one) => ORDER.indexOf(one.state), steps: (one) => one.steps, rate: (one) => one.rate ?? -1,
    losses: (one) => Object.values(one.losses)[0] ?? Infinity,
    findings: (one) => { const f = one.findings ?? {}; return (f.error ?? 0) * 1e6 + (f.warning ?? 0) * 1e3 + (f.info ?? 0); },
  };
  const group = (one) => (one.run.includes("/") ? one.run.slice(0, one.run.lastIndexOf("/")) : "");

  function cells(one) {
    const losses = Object.entries(one.losses).map(([name, value]) => `${name} ${value === null ? "nan" : lossdoctorShort(value)}`).join("  ");
    const counts = ["error", "warning", "info"].filter((each) => one.findings?.[each]).map((each) => {
      const n = one.findings[each];
      return [each, word(`count.${each}${n === 1 ? ".one" : ""}`, { n })];
    });
    const quiet = one.findings === null ? word("judging") : counts.length ? "" : word("clear");
    return {
      state: word(`state.${one.state}`).split(/[;；]/)[0], steps: one.steps ? whole(one.steps) : "",
      rate: one.rate && one.state === "growing" ? word("rate", { rate: lossdoctorShort(+one.rate.toPrecision(3)) }) : "", losses, counts, quiet,
    };
  }

  function row(name) {
    const made = document.createElement("tr");
    const box = document.createElement("input"), link = document.createElement("a");
    box.type = "checkbox";
    box.ariaLabel = name;
    box.addEventListener("change", () => { if (box.checked) chosen.add(name); else chosen.delete(name); choose(); });
    link.href = `run?${new URLSearchParams({ run: name })}`;
    link.textContent = name.slice(name.lastIndexOf("/") + 1) || name;
    made.insertCell().append(box);
    made.insertCell().append(link);
    for (const column of ["state", "steps", "rate", "losses", "findings"]) made.insertCell().className = `of-${column}`;
    made.dataset.run = name;
    return made;
  }

  function fill(name) {
    const [, , state, steps, rate, losses, findings] = shown.get(name).cells;
    const one = told.get(name), made = cells(one);
    state.textContent = made.state;
    state.dataset.state = one.state;
    steps.textContent = made.steps;
    rate.textContent = made.rate;
    losses.textContent = made.losses;
    findings.title = one.codes.join(" ");
    findings.replaceChildren(...made.counts.map(([each, text]) => {
      const span = document.createElement("span");
      span.className = `badge ${each}`;
      span.textContent = text;
      return span;
    }), made.quiet);
  }

  function choose() {
    const link = by("compare"), able = chosen.size > 1 && chosen.size <= most;
    link.ariaDisabled = String(!able);
    if (able) link.href = `compare?${new URLSearchParams([...chosen].map((run) => ["run", run]))}`;
    else link.removeAttribute("href");
    link.title = chosen.size > most ? word("most", { n: most }) : "";
  }

  // In order, a heading above each folder; nothing is moved when the order is as it was.
  function order() {
    const asked = by("search").value.toLowerCase();
    const names = [...told.keys()].filter((name) => name.toLowerCase().includes(asked));
    const key = keys[sorting.column], sign = sorting.down ? -1 : 1;
    const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
    names.sort((a, b) => compare(group(told.get(a)), group(told.get(b))) || sign * compare(key(told.get(a)), key(told.get(b))) || compare(a, b));
    const wanted = [];
    let last = "";
    for (const name of names) {
      const mine = group(told.get(name));
      if (mine !== last) { wanted.push(heading(mine)); last = mine; }
      wanted.push(shown.get(name));
    }
    const same = wanted.length === body.children.length && wanted.every((one, i) => one === body.children[i]);
    if (!same) {
      const held = document.activeElement;
      body.replaceChildren(...wanted);
      if (held !== document.activeElement && body.contains(held)) held.focus({ preventScroll: true });
    }
    by("count").textContent = told.size ? word("runs", { n: names.length, all: told.size }) : word("none");
  }

  const headings = new Map();
  function heading(name) {
    if (!headings.has(name)) {
      const made = document.createElement("tr"), cell = document.createElement("th");
      cell.colSpan = 7;
      cell.scope = "rowgroup";
      cell.textContent = `${name}/`;
      made.className = "group";
      made.append(cell);
      headings.set(name, made);
    }
    return headings.get(name);
  }

  function take({ rows, gone, all }) {
    if (all) for (const name of [...told.keys()]) if (!rows.some((one) => one.run === name)) gone.push(name);
    for (const name of gone) { told.delete(name); shown.delete(name); chosen.delete(name); }
    for (const one of rows) {
      told.set(one.run, one);
      if (!shown.has(one.run)) shown.set(one.run, row(one.run));
      fill(one.run);
    }
    order();
    choose();
    root.dataset.ready = "1";
  }

  table.querySelectorAll("[data-sort]").forEach((button) => button.addEventListener("click", () => {
    const column = button.dataset.sort;
    sorting = { column, down: sorting.column === column ? !sorting.down : ["steps", "rate", "findings"].includes(column) };
    table.querySelectorAll("th").forEach((one) => one.removeAttribute("aria-sort"));
    button.closest("th").ariaSort = sorting.down ? "descending" : "ascending";
    order();
  }));
  by("search").addEventListener("input", order);
  document.addEventListener("keydown", (event) => {
    const typing = document.activeElement === by("search");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/" && !typing) { event.preventDefault(); by("search").focus(); return; }
    if (typing && event.key === "Escape") { by("search").value = ""; order(); return; }
    const step = { ArrowDown: 1, ArrowUp: -1, j: typing ? 0 : 1, k: typing ? 0 : -1 }[event.key];
    if (!step) return;
    const links = [...body.querySelectorAll("a")];
    const at = links.findIndex((one) => one.closest("tr").contains(document.activeElement));
    const next = links[at < 0 ? (step > 0 ? 0 : links.length - 1) : Math.min(Math.max(at + step, 0), links.length - 1)];
    if (next) { event.preventDefault(); next.focus(); }
  });
  body.addEventListener("keydown", (event) => {
    if (event.key === "x" && document.activeElement.tagName === "A") document.activeElement.closest("tr").querySelector("input").click();
  });
  document.addEventListener("spoken", () => { told.forEach((_, name) => fill(name)); order(); choose(); });
  choose();
  listen({ rows: take });
}
