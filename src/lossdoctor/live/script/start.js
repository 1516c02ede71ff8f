// Which page this is.

({ list: listPage, run: runPage, compare: comparePage })[page]();
lossdoctorTools(() => charts.redraw(), (what, value) => {
  remember(what, value);
  if (what === "lang") document.dispatchEvent(new Event("spoken"));
});
