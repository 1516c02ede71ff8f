// The curves a page has, and the points that are added to them. A curve comes when it is to be drawn for the first time.

// By run: the points of every curve that is here, by name; the place of every metric the server knows; what is on its way.
const curves = runs.map(() => new Map()), places = runs.map(() => new Map()), coming = runs.map(() => new Map());
const opened = runs.map(() => ""), orders = runs.map(() => null);
const LOT = 64, AGAIN = 2000;

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

function takeWhole(run, { names, opened: told }) {
  curves[run].clear();
  coming[run].clear();
  places[run] = new Map(names.map((name, place) => [name, place]));
  opened[run] = told;
}

function takePoints(run, points) {
  const mine = curves[run];
  for (const [name, [steps, values]] of Object.entries(points)) {
    // A metric that was not told of begins with these points.
    if (!places[run].has(name)) { places[run].set(name, null); mine.set(name, { x: [], y: [] }); }
    if (mine.has(name)) add(mine.get(name), steps, values);
    else coming[run].get(name)?.later.push([steps, values]);
  }
}

// Bring the curves that are not here; null when all are, else a promise. After it they may still be missing: ask again.
function need(run, names) {
  const waits = new Set();
  for (const name of names) {
    if (curves[run].has(name) || !places[run].has(name)) continue;
    if (!coming[run].has(name)) {
      // What is asked for at one moment is one question.
      orders[run] ??= order(run);
      orders[run].names.push(name);
      coming[run].set(name, { done: orders[run].done, later: [] });
    }
    waits.add(coming[run].get(name).done);
  }
  return waits.size ? Promise.all(waits) : null;
}

function order(run) {
  const names = [], key = opened[run];
  const done = Promise.resolve().then(async () => {
    orders[run] = null;
    for (let i = 0; i < names.length; i += LOT) await bring(run, names.slice(i, i + LOT));
  }).catch(async () => {
    await new Promise((rested) => setTimeout(rested, AGAIN));
    if (key === opened[run]) names.forEach((name) => coming[run].delete(name));
  });
  return { names, done };
}

async function bring(run, names) {
  const key = opened[run];
  const asked = [["run", runs[run]], ["opened", key], ...names.map((name) => ["at", places[run].get(name)])];
  const answer = await fetch(`curves?${new URLSearchParams(asked)}`);
  if (!answer.ok) throw new Error(answer.status);
  const buffer = await answer.arrayBuffer();
  if (key !== opened[run]) return; // of the run that was here before
  const counts = new Float64Array(buffer, 0, names.length);
  const unpacked = lossdoctorUnpack(buffer, counts.reduce((sum, n) => sum + n, 0), 8 * names.length);
  let place = 0;
  names.forEach((name, i) => {
    const curve = unpacked(place, counts[i]);
    place += counts[i];
    coming[run].get(name)?.later.forEach(([steps, values]) => add(curve, steps, values));
    coming[run].delete(name);
    curves[run].set(name, curve);
  });
}
