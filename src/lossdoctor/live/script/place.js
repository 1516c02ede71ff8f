// HTML that comes later, put where it belongs.

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
