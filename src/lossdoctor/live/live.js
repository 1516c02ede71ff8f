"use strict";
// The live pages: a stream of events changes what is there; nothing is loaded anew.
(() => {
  const root = document.documentElement;
  const { page, runs, most, words } = JSON.parse(document.getElementById("data").textContent);
  const word = (key, values = {}) => words[root.dataset.lang][key].replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
  const by = (id) => document.getElementById(id);
  const whole = (n) => n.toLocaleString("en");
  const POINTS = 6000;

  function remember(what, value) {
    try { localStorage.setItem(`lossdoctor.${what}`, value); } catch { /* storage is switched off */ }
  }

  // The connection. EventSource comes back by itself when the line breaks; the rest is seen to here: a server that
  // answers with an error, a line that is silent for long (a laptop that slept, a tunnel that hangs), a hidden tab.
  function listen(handlers) {
    let source = null, last = "", timer = 0, heard = Date.now(), queue = Promise.resolve();
    const line = by("connection");
    const show = (state) => { line.dataset.state = state; line.textContent = word(`connection.${state}`); };
    function open() {
      clearTimeout(timer);
      source?.close();
      heard = Date.now();
      const query = new URLSearchParams(runs.map((run) => ["run", run]));
      if (last) query.set("last", last);
      const mine = source = new EventSource(`stream?${query}`);
      source.onopen = () => show("open");
      source.onerror = () => {
        show("lost");
        if (mine.readyState === EventSource.CLOSED) { clearTimeout(timer); timer = setTimeout(open, 3000); }
      };
      source.addEventListener("beat", () => { heard = Date.now(); });
      for (const [kind, handle] of Object.entries(handlers)) {
        source.addEventListener(kind, (event) => {
          heard = Date.now();
          // One after the other: unpacking takes time. Counted as known only when it is in the page.
          queue = queue.then(() => handle(JSON.parse(event.data))).then(() => { last = event.lastEventId || last; }, console.error);
        });
      }
    }
    function pause() { source?.close(); source = null; show("paused"); }
    setInterval(() => { if (source && Date.now() - heard > 45000) { show("lost"); open(); } }, 5000);
    let hiding = 0;
    document.addEventListener("visibilitychange", () => {
      clearTimeout(hiding);
      // Browsers have few connections to one server for all tabs together.
      if (document.hidden) hiding = setTimeout(pause, 60000);
      else if (!source) open();
    });
    window.addEventListener("pagehide", () => source?.close());
    window.addEventListener("pageshow", (event) => { if (event.persisted) open(); });
    document.addEventListener("spoken", () => { if (line.dataset.state) show(line.dataset.state); });
    open();
  }

  // Curves, by run and name.
  const curves = runs.map(() => new Map());

  function fewer(curve) {
    const { x, y } = curve, width = Math.ceil(x.length / (POINTS / 4));
    const keep = new Set([0, x.length - 1]);
    for (let start = 0; start < x.length; start += width) {
      let low = -1, high = -1;
      for (let i = start; i < Math.min(start + width, x.length); i++) {
        if (!Number.isFinite(y[i])) continue;
        if (low < 0 || y[i] < y[low]) low = i;
        if (high < 0 || y[i] > y[high]) high = i;
      }
      keep.add(low).add(high);
    }
    keep.delete(-1);
    const kept = [...keep].sort((a, b) => a - b);
    curve.x = kept.map((i) => x[i]);
    curve.y = kept.map((i) => y[i]);
  }

  // A step that comes again has its new value.
  function add(curve, steps, values) {
    for (let i = 0; i < steps.length; i++) {
      const value = values[i] ?? NaN, { x, y } = curve;
      if (!x.length || steps[i] > x[x.length - 1]) { x.push(steps[i]); y.push(value); continue; }
      let low = 0, high = x.length;
      while (low < high) { const middle = (low + high) >> 1; if (x[middle] < steps[i]) low = middle + 1; else high = middle; }
      if (x[low] === steps[i]) y[low] = value;
      else { x.splice(low, 0, steps[i]); y.splice(low, 0, value); }
    }
    if (curve.x.length > POINTS) fewer(curve);
  }

  async function takeWhole(run, { places, curves: told }) {
    const unpacked = await lossdoctorUnpack(told, places);
    const mine = curves[run];
    mine.clear();
    for (const name of Object.keys(places)) mine.set(name, unpacked(name));
  }

  function takePoints(run, points) {
    const mine = curves[run];
    for (const [name, [steps, values]] of Object.entries(points)) {
      if (!mine.has(name)) mine.set(name, { x: [], y: [] });
      add(mine.get(name), steps, values);
    }
  }

  // HTML from the server takes its place; charts that are the same stay, with their zoom, and so does what is open.
  function place(part, html) {
    const old = document.querySelector(`[data-part="${part}"]`);
    if (!old) return;
    const made = document.createElement("template");
    made.innerHTML = html;
    const opened = new Map([...old.querySelectorAll("details")].map((one) => [called(one), one.open]));
    const drawn = new Map([...old.querySelectorAll("figure.chart")].map((one) => [signed(one), one]));
    const held = document.activeElement?.tagName === "SUMMARY" && old.contains(document.activeElement)
      ? called(document.activeElement.parentElement) : null;
    const figures = [];
    for (const figure of made.content.querySelectorAll("figure.chart")) {
      const same = drawn.get(signed(figure));
      if (same) { drawn.delete(signed(figure)); figure.replaceWith(same); }
      else figures.push(figure);
    }
    for (const one of made.content.querySelectorAll("details")) {
      const before = opened.get(called(one));
      if (before !== undefined) one.open = before;
    }
    old.replaceChildren(made.content);
    if (held !== null) [...old.querySelectorAll("details")].find((one) => called(one) === held)?.querySelector("summary").focus({ preventScroll: true });
    charts.observe(figures);
  }

  const called = (details) => details.dataset.key ?? details.dataset.name ?? details.className;
  const signed = (figure) => JSON.stringify({ ...figure.dataset }) + (figure.closest("details")?.dataset.key ?? "");

  function announce(told) {
    by("news").textContent = `${word("fresh")} ${told.join(", ")}`;
    document.title = `(${told.length}) ${document.title.replace(/^\(\d+\) /, "")}`;
  }

  let charts = { redraw() {}, grown() {}, observe() {} };

  function runPage() {
    charts = lossdoctorCharts({ curve: (name) => curves[0].get(name), word, latest: true });
    let known = null;
    const values = new Map();

    function takeParts({ parts, fresh = [] }) {
      for (const [part, html] of Object.entries(parts)) {
        if (part === "verdict") by("verdict").innerHTML = html;
        else if (part === "every" && listed() === listed(html)) continue;
        else if (part !== "headlines") place(part, html);
        if (part === "every") search();
      }
      values.clear();
      document.querySelectorAll("#metrics > details").forEach((one) => values.set(one.dataset.name, one.querySelector(".value")));
      const findings = [...document.querySelectorAll("[data-part='findings'] > .finding")];
      for (const one of findings) if (known && !known.has(one.dataset.key)) one.classList.add("fresh");
      known = new Set([...(known ?? []), ...findings.map((one) => one.dataset.key)]);
      if (fresh.length) announce(fresh);
    }

    // The names in the list of metrics: as long as they are the same, the list stays.
    function listed(html) {
      let place = document;
      if (html !== undefined) { place = document.createElement("template"); place.innerHTML = html; place = place.content; }
      return [...place.querySelectorAll("#metrics > details")].map((one) => one.dataset.name).join("\n");
    }

    function search() {
      const box = by("search");
      if (!box.dataset.heard) {
        box.dataset.heard = "1";
        box.addEventListener("input", () => { asked = box.value; lossdoctorSearch(asked); });
      }
      box.value = asked;
      lossdoctorSearch(asked);
    }
    let asked = "";

    let extent = null;
    function tellExtent() {
      if (!extent?.steps) return;
      const { state, steps, measured, rate } = extent;
      const told = [word("steps", { steps: whole(steps) }), word("measured", { measured: whole(measured) })];
      if (rate && state === "growing") told.push(word("rate", { rate: lossdoctorShort(+rate.toPrecision(3)) }));
      by("extent").textContent = told.join(", ");
    }
    document.addEventListener("spoken", tellExtent);

    function takeState(told) {
      const { state, html } = extent = told;
      tellExtent();
      if (by("state").dataset.told !== html) { by("state").innerHTML = html; by("state").dataset.told = html; }
      by("state").dataset.state = document.body.dataset.state = state;
      by("waiting").hidden = !["absent", "empty"].includes(state) || curves[0].size > 0;
      by("waiting").innerHTML = html;
    }

    listen({
      whole: async (told) => {
        await takeWhole(0, told);
        takeState(told);
        takeParts(told);
        charts.grown(null);
        root.dataset.ready = "1";
      },
      points: (told) => {
        takePoints(0, told.points);
        for (const [name, [, added]] of Object.entries(told.points)) {
          const label = values.get(name);
          if (label) label.textContent = added[added.length - 1] === null ? "nan" : lossdoctorShort(added[added.length - 1]);
        }
        charts.grown(new Set(Object.keys(told.points)));
      },
      parts: takeParts,
      state: (told) => { takeState(told); root.dataset.ready = "1"; },
    });
  }

  function comparePage() {
    const [of, metric] = [(name) => Number(name.slice(0, name.indexOf(":"))), (name) => name.slice(name.indexOf(":") + 1)];
    charts = lossdoctorCharts({
      curve: (name) => curves[of(name)].get(metric(name)), word, label: (name) => runs[of(name)], hue: of, latest: true,
    });
    const states = runs.map(() => ({})), found = runs.map(() => []), heads = runs.map(() => []);
    const legend = by("legend"), listed = new Set();

    runs.forEach((run, i) => {
      const item = document.createElement("li"), mark = document.createElement("i"), link = document.createElement("a");
      mark.className = `hue${i}`;
      link.href = `run?${new URLSearchParams({ run })}`;
      link.textContent = run;
      item.append(mark, link, document.createElement("span"));
      legend.append(item);
    });

    function figure(name) {
      const made = document.createElement("figure"), title = document.createElement("figcaption");
      title.textContent = name;
      made.className = "chart";
      made.dataset.series = JSON.stringify(runs.map((_, i) => `${i}:${name}`));
      const values = curves.flatMap((mine) => mine.get(name)?.y ?? []).filter(Number.isFinite);
      const [low, high] = values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
      if (low > 0 && high > 50 * low) made.dataset.log = "1";
      made.append(title);
      return made;
    }

    function list() {
      const wanted = [...new Set(heads.flat())];
      const there = new Map([...by("charts").children].map((one) => [one.dataset.name, one]));
      for (const name of wanted) {
        if (there.has(name) || !curves.some((mine) => (mine.get(name)?.x.length ?? 0) > 1)) continue;
        const made = figure(name);
        made.dataset.name = name;
        by("charts").append(made);
        charts.observe([made]);
      }
      const names = [...new Set(curves.flatMap((mine) => [...mine.keys()]))].sort();
      for (const name of names) {
        if (listed.has(name)) continue;
        listed.add(name);
        const details = document.createElement("details"), summary = document.createElement("summary"), code = document.createElement("code");
        details.className = "metric";
        details.dataset.name = code.textContent = name;
        summary.append(code);
        details.append(summary);
        details.addEventListener("toggle", () => {
          if (!details.open || details.querySelector("figure")) return;
          const made = figure(name);
          made.firstChild.textContent = "";
          details.append(made);
          charts.observe([made]);
        });
        const next = [...by("metrics").children].find((one) => one.dataset.name > name);
        by("metrics").insertBefore(details, next ?? null);
      }
      lossdoctorSearch(by("search").value);
    }

    function tell() {
      runs.forEach((_, i) => { legend.children[i].lastChild.textContent = states[i].state ? ` ${word(`state.${states[i].state}`)}, ${word("steps", { steps: whole(states[i].steps) })}` : ""; });
      const rows = new Map();
      found.forEach((mine, i) => mine.forEach((one) => {
        const key = [one.code, one.name, one.subject].filter(Boolean).join(" ");
        if (!rows.has(key)) rows.set(key, []);
        rows.get(key)[i] = one.severity;
      }));
      const box = by("verdicts");
      if (!rows.size) { box.textContent = word("clear"); return; }
      const table = document.createElement("table"), head = table.createTHead().insertRow(), body = table.createTBody();
      head.append(document.createElement("th"), ...runs.map((run) => { const cell = document.createElement("th"); cell.textContent = run; return cell; }));
      for (const [key, severities] of rows) {
        const row = body.insertRow();
        row.insertCell().textContent = key;
        runs.forEach((_, i) => {
          const cell = row.insertCell();
          if (severities[i]) { cell.textContent = word(`severity.${severities[i]}`); cell.className = `badge ${severities[i]}`; }
        });
      }
      const around = document.createElement("div");
      around.className = "scroll";
      around.append(table);
      box.replaceChildren(around);
    }

    function take(told) {
      const run = runs.indexOf(told.run);
      if (told.state) states[run] = told;
      if (told.verdicts) found[run] = told.verdicts;
      if (told.parts?.headlines !== undefined) heads[run] = told.parts.headlines.split("\n").filter(Boolean);
      tell();
      return run;
    }

    listen({
      whole: async (told) => { const run = take(told); await takeWhole(run, told); list(); charts.grown(null); root.dataset.ready = "1"; },
      points: (told) => {
        const run = runs.indexOf(told.run), before = curves[run].size;
        takePoints(run, told.points);
        if (curves[run].size !== before) list();
        charts.grown(new Set(Object.keys(told.points).map((name) => `${run}:${name}`)));
      },
      parts: (told) => { take(told); list(); },
      state: (told) => { take(told); root.dataset.ready = "1"; },
    });
    by("search").addEventListener("input", (event) => lossdoctorSearch(event.target.value));
    document.addEventListener("spoken", tell);
  }

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

  ({ list: listPage, run: runPage, compare: comparePage })[page]();
  lossdoctorTools(() => charts.redraw(), (what, value) => {
    remember(what, value);
    if (what === "lang") document.dispatchEvent(new Event("spoken"));
  });
})();
