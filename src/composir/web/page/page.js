// The page as a whole: what it shows of a step, and what a person does.

import { $, icon, make, store, stored } from "./dom.js";
import { showEarlier } from "./earlier.js";
import { offerLook, stopLooking } from "./look.js";
import { DRAGGED, carries, more, notify, showFound, showGallery, walk } from "./results.js";
import { Failure, ask, facts, keepUpload, readFacts, sourceOf } from "./server.js";
import { addressOf, current, go, readSteps, rewrite, state, stepOf, wordsOf } from "./steps.js";
import { say, turnLanguage, writeWords } from "./text.js";

const COMPOSED = "0.5"; // the middle of the slider: as the model composes
const UNREADABLE = ["not-a-picture", "damaged-picture", "too-many-pixels", "too-large"];
const CAN_BE_TRIED_AGAIN = ["offline", "failed", "busy", ""];

// -- what is shown ----------------------------------------------------------------------------------------------------

let running = null;

async function show() {
  readSteps();
  const step = current();
  if (step || running) { // else the page has just opened, and who types at once keeps it
    for (const name of ["text", "without", "where", "least"]) $(name).value = step?.[name] ?? "";
    $("wanted").hidden = true;
  }
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  $("weight").value = step?.weight || COMPOSED;
  $("balance").hidden = !step?.image;
  $("more").open ||= Boolean(step?.where || step?.least);
  for (const id of ["notice", "next", "verdict"]) $(id).hidden = true;
  $("welcome").hidden = Boolean(step);
  showWords();
  showReference(step);
  showTrail();
  try {
    if (!step) {
      await showExamples(signal); // first: they lie above the gallery, which must not move under a hand
      if (!signal.aborted) await showGallery(signal, choose);
      return watchEnd();
    }
    const { image } = step;
    await showFound(step, signal);
    watchEnd();
    if (step.image !== image) showTrail();
    describe().catch(() => {});
  } catch (error) {
    if (!signal.aborted) await fail(error, step);
  }
}

// Say what went wrong; a picture that nothing can be asked by is no step.
async function fail(error, step) {
  if (!(error instanceof Failure)) throw error;
  if (step && UNREADABLE.includes(error.message)) {
    const others = state.steps.filter((one) => one !== step);
    rewrite(others, Math.min(Math.max(state.at - 1, 0), others.length - 1));
    await show();
    if (!current()) $("text").value = step.text;
  } else {
    $("results").replaceChildren();
    $("status").textContent = "";
  }
  notify(error.message, CAN_BE_TRIED_AGAIN.includes(error.message));
}

async function showExamples(signal) {
  const { examples } = await ask("api/examples", { signal });
  if (signal.aborted) return;
  const words = (one) => one.text || say("noWords");
  $("tries").hidden = !examples.length;
  $("examples").replaceChildren(...examples.map((one) => make("li", {}, carries(one.image_id, make(
    "a", { href: addressOf([stepOf({ image: one.image_id, text: one.text })]), "aria-label": say("exampleOf", one.text) },
    make("img", { src: `api/images/${one.image_id}?size=thumbnail`, alt: "" }), make("span", {}, words(one)),
  )))));
}

async function showReference(step) {
  stopLooking();
  const image = step?.image ?? "";
  const source = image && await sourceOf(image, "preview");
  if (step !== current()) return;
  $("empty").hidden = Boolean(source);
  $("unshown").hidden = true;
  $("picture").hidden = !source;
  $("clear").hidden = !image;
  if (source) $("picture").src = source; else $("picture").removeAttribute("src");
  $("picture").alt = image.startsWith("upload.") ? say("ownPicture") : "";
  offerLook();
}

async function showTrail() {
  const { steps, at } = state;
  const items = await Promise.all(steps.map(async (step, place) => {
    const source = step.image && await sourceOf(step.image, "thumbnail");
    const words = wordsOf(step);
    const link = make("a", { href: addressOf(steps, place), title: words }, source ? make("img", { src: source, alt: "" }) : icon(step.image ? "picture" : "search"), make("span", {}, words));
    if (place === at) link.setAttribute("aria-current", "step");
    return make("li", {}, link);
  }));
  if (steps !== state.steps) return;
  $("trail").hidden = !steps.length;
  $("trail").firstElementChild.replaceChildren(...items);
  items[at]?.scrollIntoView({ block: "nearest", inline: "center" });
}

function weigh() { $("weight").setAttribute("aria-valuetext", say("weighed", Number($("weight").value))); }

function showWords() {
  writeWords();
  const alone = !current()?.image;
  document.querySelector("label[for=text]").textContent = say(alone ? "textAlone" : "text");
  $("text").placeholder = say(alone ? "hintAlone" : "hint");
  weigh();
  $("language").textContent = say("language");
  $("size").textContent = facts.num_images ? say("size", facts.num_images) : "";
  $("about").textContent = facts.model && say("answers", facts.model);
  $("records").hidden = !facts.records;
  showEarlier();
}

async function describe() {
  await readFacts();
  $("file").accept = ["image/*", ...facts.suffixes].join();
  showWords();
  offerLook();
}

$("picture").addEventListener("error", () => { // HEIC, which not every browser shows
  $("picture").hidden = true;
  $("unshown").hidden = false;
  offerLook();
});

// -- what a person does -----------------------------------------------------------------------------------------------

function typed() {
  const given = Object.fromEntries(["text", "without", "where", "least"].map((name) => [name, $(name).value.trim()]));
  return { ...given, weight: $("weight").value === COMPOSED ? "" : $("weight").value };
}

function choose(image) { go([stepOf({ image, ...typed() })]); }

async function take(file) {
  if (file) choose(await keepUpload(file));
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const step = stepOf({ image: current()?.image, ...typed() });
  if (!step.image && !step.text) {
    $("wanted").hidden = false;
    return $("text").focus();
  }
  go([...state.steps.slice(0, Math.max(0, state.at)), step]);
});
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
$("text").addEventListener("input", () => { $("wanted").hidden = true; });
$("weight").addEventListener("input", weigh);
$("weight").addEventListener("change", () => { // it moves often: the step is put another way, and is no new one
  const step = { ...current(), ...typed() };
  if (!step.image || !step.text) return;
  rewrite([...state.steps.slice(0, state.at), step]);
  show();
});
$("clear").addEventListener("click", () => {
  const step = stepOf({ ...typed(), weight: "" });
  go(step.text ? [step] : []);
});
$("gallery").addEventListener("click", () => go([]));
$("upload").addEventListener("click", () => $("file").click());
for (const id of ["file", "shot"]) $(id).addEventListener("change", (event) => { take(event.target.files[0]); event.target.value = ""; });
$("again").addEventListener("click", show);
$("share").addEventListener("click", async () => {
  await navigator.clipboard?.writeText(location.href).catch(() => {});
  $("status").textContent = say("shared");
});

function showMore() {
  const { signal } = running;
  more(signal).then(watchEnd, (error) => {
    if (!(error instanceof Failure)) throw error;
    if (!signal.aborted) notify(error.message);
  });
}
$("next").addEventListener("click", showMore);
// Watched anew after each answer: an end that stays in view is told only once.
const end = new IntersectionObserver(([entry]) => { if (entry.isIntersecting) showMore(); }, { rootMargin: "400px" });
function watchEnd() {
  end.disconnect();
  end.observe($("next"));
}

addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (!file) return;
  event.preventDefault();
  take(file);
});
for (const name of ["dragenter", "dragover"]) addEventListener(name, (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
addEventListener("dragend", () => document.body.classList.remove("dragging"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const image = event.dataTransfer.getData(DRAGGED); // a picture of this page, else a file
  if (image) choose(image); else take(event.dataTransfer.files[0]);
});

document.querySelector(".skip").addEventListener("click", (event) => { // its # is no step
  event.preventDefault();
  $("results").focus();
});
addEventListener("keydown", (event) => {
  if (event.target.closest?.("input, textarea, dialog") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") {
    event.preventDefault();
    $("text").focus();
  } else if (event.key === "?") {
    $("help").showModal();
  } else {
    walk(event);
  }
});
$("keys").addEventListener("click", () => $("help").showModal());
$("help-shut").addEventListener("click", () => $("help").close());

$("camera").addEventListener("click", async () => {
  if (!navigator.mediaDevices?.getUserMedia || matchMedia("(pointer: coarse)").matches) return $("shot").click();
  const stream = await navigator.mediaDevices.getUserMedia({ video: true }).catch(() => null);
  if (!stream) return notify("noCamera");
  const dialog = $("viewfinder"), video = dialog.querySelector("video");
  video.srcObject = stream;
  dialog.onclose = () => stream.getTracks().forEach((track) => track.stop());
  dialog.showModal();
});
$("cancel").addEventListener("click", () => $("viewfinder").close());
$("take").addEventListener("click", () => {
  const video = $("viewfinder").querySelector("video");
  const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  $("viewfinder").close();
  canvas.toBlob(take, "image/jpeg", 0.92);
});

$("language").addEventListener("click", () => {
  turnLanguage();
  show();
});
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  store("theme", theme);
}
$("theme").addEventListener("click", () => {
  const dark = (stored("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  setTheme(dark ? "light" : "dark");
});
if (stored("theme")) setTheme(stored("theme"));

describe().catch(() => {}).finally(() => { // a search of before is shown once, when the server's facts are known
  addEventListener("hashchange", show);
  show();
});
