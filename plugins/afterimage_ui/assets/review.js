// Review by keyboard: one image at a time, each answer is sent at once, and the next image is there before the answer is back.
(() => {
  // Where all that the server had the time to look at was reviewed: it goes on from there, and comes to an end.
  const further = document.getElementById("go-on");
  if (further) return location.replace(further.href);
  const found = document.getElementById("batch");
  if (!found) return;
  const batch = JSON.parse(found.textContent);
  const part = (id) => document.getElementById(id);
  const [stage, picture, choices, matches, search, told] =
    ["stage", "picture", "choices", "matches", "search", "told"].map(part);
  const cards = [...part("queue").children];
  const memory = `afterimage.reviewed.${batch.pipeline}`;
  const pages = 20;
  let at = 0;
  let chosen = 0;
  let busy = false;

  const shown = (label) => batch.odd[label] ?? label;
  const item = () => batch.items[at];
  const source = (one) => `${batch.root}/thumbnails/${one.digest}`;
  const tell = (text, isBad = false) => {
    told.textContent = text;
    told.className = isBad ? "bad" : "";
  };

  // The reviews of this tab, the last one at the end, so that Undo reaches over pages.
  const done = () => {
    try {
      return JSON.parse(sessionStorage.getItem(memory)) ?? [];
    } catch {
      return [];
    }
  };
  const keep = (digests) => {
    try {
      sessionStorage.setItem(memory, JSON.stringify(digests.slice(-pages * 5)));
    } catch {
      // Without storage, Undo ends with this page.
    }
  };

  const post = async (path, body) => {
    const answer = await fetch(`${batch.root}/${path}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const said = await answer.json().catch(() => ({}));
    if (answer.ok) return said;
    const detail = typeof said.detail === "string" ? said.detail : `The server answered ${answer.status}.`;
    throw new Error(answer.status === 401 ? "You are no longer signed in. Load the page again." : detail);
  };

  // One request at a time, so that keys which are pressed faster than the server answers do not overtake each other.
  const alone = async (work) => {
    if (busy) return;
    busy = true;
    try {
      await work();
    } catch (error) {
      tell(error.message, true);
    } finally {
      busy = false;
    }
  };

  const count = (one, by) => {
    batch.reviews += by;
    if (one.answer === one.label) batch.right += by;
    part("reviews").textContent = batch.reviews.toLocaleString("en");
    part("agreed").hidden = !batch.reviews;
    part("share").textContent = batch.reviews ? `${((100 * batch.right) / batch.reviews).toFixed(1)}%` : "";
  };

  const button = (label, score, number, take) => {
    const line = document.createElement("li");
    const press = document.createElement("button");
    const name = document.createElement("span");
    name.className = "name";
    name.textContent = name.title = shown(label);
    press.type = "button";
    press.disabled = !batch.change;
    if (number) {
      const key = document.createElement("kbd");
      key.textContent = number;
      press.append(key);
    }
    press.append(name);
    if (score) {
      const value = document.createElement("span");
      value.className = "score";
      value.textContent = score;
      press.append(value);
    }
    // The focus goes back to the page: Enter must not press this button again, for another image.
    press.addEventListener("click", () => (press.blur(), take(label)));
    line.append(press);
    return line;
  };

  const show = (index) => {
    at = index;
    const one = item();
    picture.replaceChildren();
    if (batch.thumbnails) {
      const image = new Image();
      image.src = source(one);
      image.alt = shown(one.label);
      image.className = "thumbnail";
      picture.append(image);
      for (const later of batch.items.slice(at + 1, at + 3)) new Image().src = source(later);
    }
    const link = part("key");
    link.textContent = link.title = one.shown;
    link.href = `${batch.root}/image?key=${encodeURIComponent(one.key)}`;
    part("label").textContent = shown(one.label);
    part("score").textContent = `${one.choices[0]?.score ?? ""} · margin ${one.margin}`;
    part("place").textContent = at + 1;
    choices.replaceChildren(...one.choices.map((best, place) => button(best.label, best.score, place + 1, answer)));
    for (const [place, line] of [...choices.children].entries())
      line.classList.toggle("taken", one.answer === one.choices[place].label);
    cards.forEach((card, place) => {
      card.toggleAttribute("aria-current", place === at);
      card.classList.toggle("done", batch.items[place].answer !== undefined);
    });
    leave();
  };

  const onward = () => {
    if (at + 1 < batch.items.length) return show(at + 1);
    if (batch.next) return location.assign(batch.next);
    const open = batch.items.findIndex((one) => one.answer === undefined);
    if (open === -1) return location.assign(batch.first);
    return open === at ? tell("This is the last one.") : show(open);
  };

  const answer = (label) =>
    alone(async () => {
      if (!batch.change) return;
      const one = item();
      tell("");
      await post("reviews", { digest: one.digest, label, model_id: batch.model });
      if (one.answer !== undefined) count(one, -1);
      one.answer = label;
      count(one, 1);
      keep([...done().filter((digest) => digest !== one.digest), one.digest]);
      tell(`${one.shown}: ${shown(label)}`);
      onward();
    });

  const undo = () =>
    alone(async () => {
      const digests = done();
      const last = digests.pop();
      if (!batch.change) return;
      if (last === undefined) return tell("There is nothing to undo in this tab.");
      await post("reviews/removed", { digest: last });
      keep(digests);
      const place = batch.items.findIndex((one) => one.digest === last);
      if (place === -1) return location.assign(batch.first);
      if (batch.items[place].answer !== undefined) count(batch.items[place], -1);
      delete batch.items[place].answer;
      show(place);
      tell("Taken back.");
    });

  const matching = () => {
    const wanted = search.value.trim().toLowerCase();
    if (!wanted) return [];
    const hits = batch.labels.filter((label) => label.toLowerCase().includes(wanted));
    const rank = (label) => (label.toLowerCase() === wanted ? 0 : label.toLowerCase().startsWith(wanted) ? 1 : 2);
    return [...new Set(hits)].sort((one, other) => rank(one) - rank(other)).slice(0, 8);
  };

  const suggest = () => {
    const labels = matching();
    chosen = Math.max(0, Math.min(chosen, labels.length - 1));
    matches.replaceChildren(...labels.map((label) => button(label, "", "", answer)));
    [...matches.children].forEach((line, place) => line.classList.toggle("chosen", place === chosen));
  };

  const leave = () => {
    if (!search) return;
    search.value = "";
    chosen = 0;
    suggest();
    search.blur();
  };

  const inSearch = (event) => {
    const steps = { ArrowDown: 1, ArrowUp: -1 };
    if (event.key === "Escape") leave();
    else if (event.key in steps) chosen += steps[event.key];
    else if (event.key === "Enter") {
      // A label that is not in the list, where there are very many: the server knows.
      const label = matching()[chosen] ?? search.value.trim();
      if (label) answer(label);
    } else return;
    event.preventDefault();
    if (event.key in steps) suggest();
  };

  const keys = {
    a: () => answer(item().label),
    enter: () => answer(item().label),
    u: undo,
    j: onward,
    arrowright: onward,
    k: () => at && show(at - 1),
    arrowleft: () => at && show(at - 1),
    "/": () => search?.focus(),
    "?": () => (part("keys").open = !part("keys").open),
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.target === search) return inSearch(event);
    if (event.target.closest?.("input, select, textarea")) return;
    // Where a button or a link has the focus, Enter is for that.
    if (event.key === "Enter" && event.target.closest?.("a, button, summary")) return;
    const number = /^[1-9]$/.test(event.key) ? Number(event.key) : 0;
    const act = number ? item().choices[number - 1] && (() => answer(item().choices[number - 1].label)) : keys[event.key.toLowerCase()];
    if (!act || event.repeat) return;
    event.preventDefault();
    act();
  });

  const press = (id, act) => part(id)?.addEventListener("click", (event) => (event.currentTarget.blur(), act()));
  press("agree", () => answer(item().label));
  press("undo", undo);
  press("next", onward);
  press("previous", () => at && show(at - 1));
  search?.addEventListener("input", () => ((chosen = 0), suggest()));
  cards.forEach((card, place) =>
    card.addEventListener("click", (event) => event.target.closest("a") || (show(place), stage.scrollIntoView())),
  );
  stage.hidden = false;
  show(0);
})();
