// The curves a page has, and the points that are added to them.

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
