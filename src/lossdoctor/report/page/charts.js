"use strict";
// The charts of a page: drawn when they come into view, kept in step, drawn anew when their curves grow.

// Curves lie in one piece: every step as a difference, then every value. Returns the one that has n points from a place on.
function lossdoctorUnpack(buffer, total, begin = 0) {
  const steps = new Float64Array(buffer, begin, total), values = new Float32Array(buffer, begin + 8 * total, total);
  return (start, n) => {
    const x = new Array(n), y = new Array(n);
    let step = 0;
    for (let i = 0; i < n; i++) {
      step += steps[start + i];
      x[i] = step;
      y[i] = values[start + i];
    }
    return { x, y };
  };
}

function lossdoctorShort(value) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(1) : String(+value.toPrecision(4));
}

// curve(name): { x, y } of a curve, or undefined; need(names): null when these curves are here, else a promise to bring
// them; begin(figure, names): told before a figure is drawn for the first time; word(key): a word in the language of the
// page; label(name): what a curve is called in a legend; hue(name, place): which of the six colours it has; latest: whether
// a legend shows the last values while nothing is pointed at.
function lossdoctorCharts({
  curve, need = () => null, begin = () => {}, word, label = (name) => name, hue = (name, place) => place, latest = false,
}) {
  const root = document.documentElement;
  const short = lossdoctorShort;
  const charts = new Map();
  const inView = new Set();
  const late = new Set();
  const series = (figure) => JSON.parse(figure.dataset.series ?? "[]");
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();

  function drawable(name, log) {
    const { x, y } = curve(name);
    return [x, y.map((value) => (Number.isFinite(value) && !(log && value <= 0) ? value : null))];
  }

  // What a figure shows, as columns: x, then one per curve.
  function contents(figure, log) {
    if (figure.dataset.points) {
      const given = Object.entries(JSON.parse(figure.dataset.points));
      const tables = given.map(([, pairs]) => [pairs.map((p) => p[0]), pairs.map((p) => p[1])]);
      return { names: given.map(([name]) => name), data: uPlot.join(tables) };
    }
    const names = series(figure).filter((name) => curve(name) !== undefined);
    return { names, data: names.length ? uPlot.join(names.map((name) => drawable(name, log))) : [[]] };
  }

  // Inside the plot alone.
  function clipped(plot, paint) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    paint(ctx, bbox);
    ctx.restore();
  }

  function judgedSteps(figure) {
    return (plot) => {
      const [from, to] = [Number(figure.dataset.from ?? NaN), Number(figure.dataset.to ?? NaN)];
      if (!Number.isFinite(from) || !Number.isFinite(to)) return;
      clipped(plot, (ctx, bbox) => {
        const [a, b] = [plot.valToPos(from, "x", true), plot.valToPos(to, "x", true)];
        ctx.fillStyle = colour("--soft");
        ctx.globalAlpha = 0.1;
        ctx.fillRect(a, bbox.top, Math.max(b - a, 2), bbox.height);
      });
    };
  }

  // Over the grid: a threshold is often a round number, and would be hidden by the line of one.
  function thresholdLine(figure) {
    return (plot) => {
      const threshold = Number(figure.dataset.threshold ?? NaN);
      if (!Number.isFinite(threshold)) return;
      clipped(plot, (ctx, bbox) => {
        const y = Math.round(plot.valToPos(threshold, "y", true)) + 0.5;
        ctx.strokeStyle = colour("--error");
        ctx.setLineDash([6, 4]);
        ctx.beginPath();
        ctx.moveTo(bbox.left, y);
        ctx.lineTo(bbox.left + bbox.width, y);
        ctx.stroke();
        if (figure.dataset.thresholdName) {
          ctx.fillStyle = colour("--error");
          ctx.font = `${11 * devicePixelRatio}px system-ui`;
          ctx.fillText(figure.dataset.thresholdName, bbox.left + 6, y + 13 * devicePixelRatio);
        }
      });
    };
  }

  // The steps at which something was changed.
  function changes(figure) {
    return (plot) => clipped(plot, (ctx, bbox) => {
      const steps = JSON.parse(figure.dataset.marks ?? "[]");
      ctx.strokeStyle = colour("--soft");
      ctx.setLineDash([2, 4]);
      for (const step of steps) {
        const x = Math.round(plot.valToPos(step, "x", true)) + 0.5;
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
      }
    });
  }

  function wipe(figure) {
    const { plot, parts } = charts.get(figure);
    plot?.destroy();
    parts.forEach((part) => part.remove());
    charts.delete(figure);
    late.delete(figure);
  }

  function draw(figure) {
    if (charts.has(figure)) wipe(figure); else begin(figure, series(figure));
    const log = figure.dataset.log === "1" || "points" in figure.dataset;
    const { names, data } = contents(figure, log);
    const box = document.createElement("div");
    box.className = "plot";
    const key = document.createElement("div");
    key.className = "key";
    figure.append(box, key);
    if (!data[0].length || data.slice(1).every((ys) => ys.every((y) => y === null || y === undefined))) {
      box.className = "empty";
      box.textContent = word("empty");
      charts.set(figure, { plot: null, parts: [box, key], spans: [] });
      return;
    }
    const band = figure.dataset.band === "1";
    const isPoints = "points" in figure.dataset;
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    const spans = names.map((name, i) => {
      const item = document.createElement("span");
      const mark = document.createElement("i");
      mark.style.background = colour(`--c${hue(name, i) % 6}`);
      const value = document.createElement("b");
      item.append(mark, `${label(name)} `, value);
      key.append(item);
      return value;
    });
    const options = {
      width: Math.max(figure.clientWidth - 20, 200),
      height: 200,
      legend: { show: false },
      cursor: { sync: isPoints ? undefined : { key: "steps", scales: ["x", null] }, drag: { x: true, y: false }, points: { size: 5 } },
      scales: {
        x: { time: false, distr: isPoints ? 3 : 1, log: isPoints ? 2 : 10 },
        y: {
          distr: log ? 3 : 1,
          range: (plot, low, high) => {
            if (low === null || high === null) return [0, 1];
            const threshold = Number(figure.dataset.threshold ?? NaN);
            // The threshold belongs into the picture unless it would flatten the curve.
            const near = Number.isFinite(threshold) && (log ? threshold > low / 1e3 && threshold < high * 1e3 : Math.abs(threshold - (low + high) / 2) < 5 * (high - low) + 1e-12);
            if (near) { low = Math.min(low, threshold); high = Math.max(high, threshold); }
            if (log) return uPlot.rangeLog(low, high, 10, false);
            const room = (high - low || Math.abs(high) || 1) * 0.06;
            return [low - room, high + room];
          },
        },
      },
      axes: [
        { ...axis, size: 30, values: (_, splits) => splits.map((v) => (v === null ? "" : v >= 1e4 ? `${+(v / 1e3).toPrecision(4)}k` : short(v))) },
        { ...axis, size: 56, values: (_, splits) => splits.map(short) },
      ],
      series: [
        {},
        ...names.map((name, i) => ({
          label: name, stroke: colour(`--c${hue(name, i) % 6}`), width: 1.5, spanGaps: true,
          points: { show: isPoints || data[0].length < 40 },
          dash: band && i < 2 ? [2, 3] : undefined,
        })),
      ],
      bands: band ? [{ series: [2, 1], fill: colour("--line") }] : undefined,
      hooks: {
        drawClear: [judgedSteps(figure)],
        drawAxes: [thresholdLine(figure), changes(figure)],
        setCursor: [(plot) => tell(spans, plot)],
      },
    };
    const plot = new uPlot(options, data, box);
    figure.lossdoctorChart = plot;
    tell(spans, plot);
    charts.set(figure, { plot, parts: [box, key], spans });
  }

  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) inView.delete(target);
      else {
        inView.add(target);
        show(target);
      }
    }
  }, { rootMargin: "300px" });

  // A figure in view is drawn, or has its new points, as soon as its curves are here.
  function show(figure) {
    if (!inView.has(figure) || !figure.isConnected || (charts.has(figure) && !late.has(figure))) return;
    const coming = need(series(figure));
    if (coming) coming.then(() => show(figure));
    else if (!charts.has(figure)) draw(figure);
    else { late.delete(figure); renew(figure); }
  }

  function refresh(figure) {
    late.add(figure);
    show(figure);
  }

  // The same chart with the points that have come since; a part that was zoomed into stays.
  function renew(figure) {
    const plot = charts.get(figure).plot;
    const log = figure.dataset.log === "1";
    const { names, data } = contents(figure, log);
    if (!plot || plot.series.length !== data.length || (plot.data[0].length < 40) !== (data[0].length < 40)) {
      draw(figure);
      return;
    }
    const xs = plot.data[0], { min, max } = plot.scales.x;
    const all = min <= xs[0] && max >= xs[xs.length - 1];
    plot.setData(data, all);
    if (!all) plot.redraw(false);
    tell(charts.get(figure).spans, plot);
  }

  // Values under the pointer; else the last ones, or none.
  function tell(spans, plot) {
    const at = plot.cursor.idx ?? null;
    spans.forEach((span, i) => {
      const ys = plot.data[i + 1];
      let place = at ?? (latest ? ys.length - 1 : -1);
      while (at === null && place >= 0 && (ys[place] ?? null) === null) place -= 1;
      span.textContent = place < 0 ? "" : short(ys[place]);
    });
  }

  // In other colours, or of another size: now where they are seen, else when they are.
  function redraw() {
    for (const figure of [...charts.keys()]) { wipe(figure); show(figure); }
  }

  // Curves have grown. names: a Set of them, or null for all.
  function grown(names) {
    for (const figure of [...charts.keys()]) {
      if (!figure.isConnected) { wipe(figure); inView.delete(figure); }
      else if (names === null || series(figure).some((name) => names.has(name))) refresh(figure);
    }
  }

  // What is drawn over their curves has changed.
  function marked(figures) {
    figures.filter((figure) => charts.has(figure)).forEach(refresh);
  }

  let waiting = 0;
  window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(redraw, 150); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  return {
    redraw, grown, marked, has: (figure) => charts.has(figure), draw,
    observe: (figures) => figures.forEach((figure) => seen.observe(figure)),
  };
}

// Language, theme and the search box of the list of metrics. chosen(what, value): told of every choice.
function lossdoctorTools(redraw, chosen = () => {}) {
  const root = document.documentElement;
  const buttons = [...document.querySelectorAll("[data-set-lang]")];
  const press = () => buttons.forEach((one) => one.setAttribute("aria-pressed", String(one.dataset.setLang === root.dataset.lang)));
  press();
  buttons.forEach((button) => button.addEventListener("click", () => {
    root.dataset.lang = root.lang = button.dataset.setLang;
    press();
    chosen("lang", button.dataset.setLang);
  }));
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    redraw();
    chosen("theme", root.dataset.theme);
  });
}

// Of the list of metrics those that hold what is asked.
function lossdoctorSearch(asked) {
  const part = asked.toLowerCase();
  document.querySelectorAll("#metrics > details").forEach((one) => { one.hidden = !one.dataset.name.toLowerCase().includes(part); });
}
