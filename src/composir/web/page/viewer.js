// One picture, large, with what can be done with it; arrows turn the pages.

import { $ } from "./dom.js";

let shown = [], at = 0, means = {};

// ``means.mark`` marks a picture as more or less like what is wanted, where there is a search to be changed by it.
export function openViewer(pictures, place, given) {
  [shown, means] = [pictures, given];
  turnTo(place);
  $("viewer").showModal();
}

function turnTo(place) {
  at = Math.max(0, Math.min(place, shown.length - 1));
  const one = shown[at];
  const file = `api/images/${one.id}?size=full`;
  $("large").src = `api/images/${one.id}?size=preview`;
  $("large").alt = one.path;
  $("large-name").textContent = one.path;
  $("large-said").textContent = [one.score && `${one.rank}. ${one.score}`, means.fitOf(one), one.seen].filter(Boolean).join(" · ");
  $("go-on").href = one.href;
  $("open").href = file;
  $("download").href = file;
  $("download").download = one.path.split("/").pop().replace(/\.[^.]*$/, ".jpg");
  for (const kind of ["more", "less"]) {
    $(`${kind}-like`).hidden = !means.mark;
    if (means.mark) $(`${kind}-like`).setAttribute("aria-pressed", String(means.isMarked(kind, one.id)));
  }
  $("previous").disabled = at === 0;
  $("following").disabled = at === shown.length - 1;
}

$("previous").addEventListener("click", () => turnTo(at - 1));
$("following").addEventListener("click", () => turnTo(at + 1));
$("go-on").addEventListener("click", () => $("viewer").close());
$("shut").addEventListener("click", () => $("viewer").close());
for (const kind of ["more", "less"]) $(`${kind}-like`).addEventListener("click", () => {
  $("viewer").close();
  means.mark(kind, shown[at].id);
});
$("viewer").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  turnTo(at + step);
});
$("viewer").addEventListener("click", (event) => { if (event.target === $("viewer")) $("viewer").close(); }); // beside it
