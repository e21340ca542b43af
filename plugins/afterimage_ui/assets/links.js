// Links to Airflow's own pages, <a data-airflow href="...">: a plain click would open Airflow inside the frame, whose sandbox
// bars every other way out. A link in the parent's document is followed there, and Back returns to this page.
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[data-airflow]");
  const modified = event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey;
  if (!link || event.defaultPrevented || modified || parent === window) return;
  let outer;
  try {
    outer = parent.document;
  } catch {
    return;
  }
  event.preventDefault();
  const twin = outer.createElement("a");
  twin.href = link.href;
  outer.body.append(twin);
  twin.click();
  twin.remove();
});
