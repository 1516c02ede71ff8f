// The page of one run.

function runPage() {
  charts = lossdoctorCharts({ curve: (name) => curves[0].get(name), need: (names) => need(0, names), word, latest: true });
  let known = null;
  const later = new Set([...document.querySelectorAll("main > section[hidden]")].map((one) => one.id));
  const values = new Map();

  function takeParts({ parts, fresh = [] }) {
    for (const [part, html] of Object.entries(parts)) {
      if (part === "verdict") by("verdict").innerHTML = html;
      else if (part === "every" && listed === (listed = names(html))) continue;
      else if (part !== "headlines") place(part, html);
      if (later.has(part)) {
        by(part).hidden = !html;
        document.querySelector(`nav a[href="#${part}"]`).hidden = !html;
      }
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
  let listed = "";
  const names = (html) => html.match(/data-name="[^"]*"/g)?.join(" ");

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
    by("waiting").hidden = !["absent", "empty"].includes(state) || places[0].size > 0;
    by("waiting").innerHTML = html;
  }

  listen({
    whole: (told) => {
      takeWhole(0, told);
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
