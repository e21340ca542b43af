// Buttons that have failures tried again: they are marked by our app, and a run is started by Airflow, as the user who is signed in.
(() => {
  const place = document.querySelector("[data-retries]");
  const told = document.querySelector("output.told");
  const send = async (address, body) => {
    const answer = await fetch(address, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const type = answer.headers.get("content-type") ?? "";
    const said = type.includes("json") ? await answer.json() : {};
    if (answer.ok) return said;
    throw new Error(typeof said.detail === "string" ? said.detail : `The server answered ${answer.status}.`);
  };

  const start = async (said) => {
    const run = await send(said.start, { logical_date: null });
    const link = document.createElement("a");
    link.dataset.airflow = "";
    link.href = said.runs + encodeURIComponent(run.dag_run_id);
    link.textContent = run.dag_run_id;
    told.append(" The run ", link, " has been started.");
  };

  const retry = async (button) => {
    const body = { start: "start" in button.dataset };
    for (const name of ["reason", "key"]) if (name in button.dataset) body[name] = button.dataset[name];
    const said = await send(place.dataset.retries, body);
    told.textContent = `${said.marked} ${said.marked === 1 ? "image is" : "images are"} due: the next run tries again.`;
    if (said.start) await start(said);
  };

  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("button[data-retry]");
    if (!button || !place || !told) return;
    button.disabled = true;
    told.textContent = "";
    try {
      await retry(button);
    } catch (error) {
      told.append(` ${error.message}`);
    }
    button.disabled = false;
    told.scrollIntoView({ block: "nearest" });
  });
})();
