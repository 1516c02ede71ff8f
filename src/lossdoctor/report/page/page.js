"use strict";
// The report: its curves lie in the page, a gzip stream in base64.
(async () => {
  const root = document.documentElement;
  const { places, words } = JSON.parse(document.getElementById("data").textContent);
  const bytes = Uint8Array.from(atob(document.getElementById("curves").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const total = Object.values(places).reduce((sum, [, n]) => sum + n, 0);
  const unpacked = lossdoctorUnpack(await new Response(stream).arrayBuffer(), total);
  const charts = lossdoctorCharts({
    curve: (name) => (Object.hasOwn(places, name) ? unpacked(...places[name]) : undefined),
    word: (key) => words[root.dataset.lang][key],
  });
  const figures = [...document.querySelectorAll("figure.chart")];
  charts.observe(figures);
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details.finding, details.others").forEach((one) => { one.open = true; });
    figures.filter((figure) => !figure.closest("#every")).forEach((figure) => { if (!charts.has(figure)) charts.draw(figure); });
  });
  lossdoctorTools(charts.redraw);
  document.getElementById("search")?.addEventListener("input", (event) => lossdoctorSearch(event.target.value));
  root.dataset.ready = "1";
})();
