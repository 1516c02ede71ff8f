// Several runs in the same charts.

function comparePage() {
  const [of, metric] = [(name) => Number(name.slice(0, name.indexOf(":"))), (name) => name.slice(name.indexOf(":") + 1)];
  charts = lossdoctorCharts({
    curve: (name) => curves[of(name)].get(metric(name)), word, label: (name) => runs[of(name)], hue: of, latest: true,
    need: (names) => {
      const waits = runs.map((_, i) => need(i, names.filter((name) => of(name) === i).map(metric))).filter(Boolean);
      return waits.length ? Promise.all(waits) : null;
    },
    begin: (figure, names) => {
      const values = names.flatMap((name) => curves[of(name)].get(metric(name))?.y ?? []).filter(Number.isFinite);
      const [low, high] = values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
      if (low > 0 && high > 50 * low) figure.dataset.log = "1"; else delete figure.dataset.log;
    },
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
    made.append(title);
    return made;
  }

  function list() {
    const wanted = [...new Set(heads.flat())];
    const there = new Map([...by("charts").children].map((one) => [one.dataset.name, one]));
    for (const name of wanted) {
      if (there.has(name)) continue;
      const made = figure(name);
      made.dataset.name = name;
      by("charts").append(made);
      charts.observe([made]);
    }
    const names = [...new Set(places.flatMap((mine) => [...mine.keys()]))].sort();
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
    whole: (told) => { const run = take(told); takeWhole(run, told); list(); charts.grown(null); root.dataset.ready = "1"; },
    points: (told) => {
      const run = runs.indexOf(told.run), before = places[run].size;
      takePoints(run, told.points);
      if (places[run].size !== before) list();
      charts.grown(new Set(Object.keys(told.points).map((name) => `${run}:${name}`)));
    },
    parts: (told) => { take(told); list(); },
    state: (told) => { take(told); root.dataset.ready = "1"; },
  });
  by("search").addEventListener("input", (event) => lossdoctorSearch(event.target.value));
  document.addEventListener("spoken", tell);
}
