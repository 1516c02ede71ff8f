"use strict";
// Before anything is drawn: the language and the theme that were chosen on an earlier page.
(() => {
  const root = document.documentElement;
  try {
    const lang = localStorage.getItem("lossdoctor.lang"), theme = localStorage.getItem("lossdoctor.theme");
    if (lang === "en" || lang === "zh-CN") root.dataset.lang = root.lang = lang;
    if (theme === "dark" || theme === "light") root.dataset.theme = theme;
  } catch { /* storage is switched off: nothing was chosen */ }
})();
