// The page of a run that is still going asks for itself anew every few seconds, until the run has ended; not while it is hidden.
(() => {
  const PAUSE = 3000;
  const SILENT = 15000;
  let timer = 0;
  const running = () => document.querySelector("[data-live]")?.dataset.live === "running";
  const later = (pause) => {
    clearTimeout(timer);
    if (running() && !document.hidden) timer = setTimeout(refresh, pause);
  };

  const show = (fresh) => {
    const main = document.querySelector("main");
    const focused = document.activeElement?.getAttribute?.("href");
    main.replaceChildren(...document.adoptNode(fresh).childNodes);
    // Whoever goes through the page by keyboard stays where they are.
    if (focused) [...main.querySelectorAll("a[href]")].find((link) => link.getAttribute("href") === focused)?.focus();
  };

  const refresh = async () => {
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (answer.status === 401 || answer.status === 403) return;
      if (!answer.ok) throw new Error(answer.status);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.querySelector("main");
      if (!fresh?.querySelector("[data-live]")) throw new Error("This is not the page of a run.");
      show(fresh);
      later(PAUSE);
    } catch {
      later(SILENT);
    }
  };

  document.addEventListener("visibilitychange", () => later(0));
  later(PAUSE);
})();
