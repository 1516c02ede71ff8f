// HTML that comes later, put where it belongs.

// HTML from the server takes its place; charts that are the same stay, with their zoom, and so does what is open.
function place(part, html) {
  const old = document.querySelector(`[data-part="${part}"]`);
  if (!old) return;
  const made = document.createElement("template");
  made.innerHTML = html;
  const opened = new Map([...old.querySelectorAll("details")].map((one) => [called(one, old), one.open]));
  const drawn = new Map([...old.querySelectorAll("figure.chart")].map((one) => [signed(one), one]));
  const held = document.activeElement?.tagName === "SUMMARY" && old.contains(document.activeElement)
    ? called(document.activeElement.parentElement, old) : null;
  const figures = [], marked = [];
  for (const figure of made.content.querySelectorAll("figure.chart")) {
    const same = drawn.get(signed(figure));
    if (!same) { figures.push(figure); continue; }
    drawn.delete(signed(figure));
    figure.replaceWith(same);
    if (MARKS.every((mark) => same.dataset[mark] === figure.dataset[mark])) continue;
    for (const mark of MARKS) {
      if (figure.dataset[mark] === undefined) delete same.dataset[mark]; else same.dataset[mark] = figure.dataset[mark];
    }
    marked.push(same);
  }
  for (const one of made.content.querySelectorAll("details")) {
    const before = opened.get(called(one, made.content));
    if (before !== undefined) one.open = before;
  }
  old.replaceChildren(made.content);
  if (held !== null) [...old.querySelectorAll("details")].find((one) => called(one, old) === held)?.querySelector("summary").focus({ preventScroll: true });
  charts.observe(figures);
  charts.marked(marked);
}

// What is drawn over the curves of a chart; the chart is the same when it changes.
const MARKS = ["from", "to", "threshold", "thresholdName", "marks"];

// By its own name; without one by its place among those of its part.
function called(details, part) {
  const name = details.dataset.key ?? details.dataset.name;
  return name ?? `${details.className} ${[...part.querySelectorAll("details")].indexOf(details)}`;
}

function signed(figure) {
  const shown = { ...figure.dataset };
  for (const mark of MARKS) delete shown[mark];
  return JSON.stringify(shown) + (figure.closest("details")?.dataset.key ?? "");
}

function announce(told) {
  by("news").textContent = `${word("fresh")} ${told.join(", ")}`;
  document.title = `(${told.length}) ${document.title.replace(/^\(\d+\) /, "")}`;
}
