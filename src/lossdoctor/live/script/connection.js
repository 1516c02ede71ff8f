// The stream of events, and what becomes of it when the line breaks.

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
