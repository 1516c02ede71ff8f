"use strict";
// The report: its curves lie in the page.
(async () => {
  const root = document.documentElement;
  const { places, words } = JSON.parse(document.getElementById("data").textContent);
  const unpacked = await lossdoctorUnpack(document.getElementById("curves").textContent, places);
  const charts = lossdoctorCharts({
    curve: (name) => (Object.hasOwn(places, name) ? unpacked(name) : undefined),
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
