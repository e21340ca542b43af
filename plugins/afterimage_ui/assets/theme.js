// Airflow's theme, also when the user changes it: the class of the parent's root, else what was stored, else the system's.
(() => {
  const root = document.documentElement;
  const media = matchMedia("(prefers-color-scheme: dark)");
  const frame = (() => {
    try {
      return parent === window ? null : parent.document.documentElement;
    } catch {
      return null;
    }
  })();
  const stored = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null;
    }
  };
  const wanted = () => {
    for (const name of ["dark", "light"]) if (frame?.classList.contains(name)) return name;
    const chosen = stored();
    if (chosen === "dark" || chosen === "light") return chosen;
    return media.matches ? "dark" : "light";
  };
  const apply = () => {
    root.dataset.theme = wanted();
    root.dataset.framed = String(frame !== null);
  };
  apply();
  if (frame) {
    const observer = new MutationObserver(apply);
    observer.observe(frame, { attributes: true, attributeFilter: ["class"] });
    addEventListener("pagehide", () => observer.disconnect());
  }
  addEventListener("storage", apply);
  media.addEventListener("change", apply);
})();
