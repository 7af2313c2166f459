// The pictures: the gallery, what a search has found, and what can be done with each.

import { $, icon, make } from "./dom.js";
import { remember } from "./earlier.js";
import { Failure, ask, facts, formOf } from "./server.js";
import { addressOf, current, go, idsOf, rewrite, state, stepOf } from "./steps.js";
import { say } from "./text.js";
import { openViewer } from "./viewer.js";

const TOP_K = 24, MORE = 48, MOST = 200, PAGE = 60, NUM_WAITING = 8, WAIT_MS = 150;
export const DRAGGED = "application/x-composir-image";

let shown = []; // the pictures that are there, in order: what the large view turns the pages of
let showMore = async () => {};
let marked = ""; // the button that was pressed last, which keeps the focus
const meant = new Set(); // the choices of this page's visit

export function notify(key, canRetry = false) {
  $("notice").hidden = false;
  $("notice").firstElementChild.textContent = say(key, facts.suffixes.join(" "));
  $("again").hidden = !canRetry;
  $("notice").scrollIntoView({ block: "nearest" });
}

export async function showFound(step, signal) {
  $("status").textContent = say("searching");
  const results = $("results");
  results.className = "found";
  const waiting = () => make("div", { class: "waiting" });
  const slow = setTimeout(() => results.replaceChildren(...Array.from({ length: NUM_WAITING }, waiting)), WAIT_MS);
  let found;
  try {
    found = await search(step, TOP_K, signal);
  } finally {
    clearTimeout(slow);
  }
  if (signal.aborted) return;
  if (found.reference && found.reference !== step.image) { // it is in the index: the address can say which
    step.image = found.reference;
    rewrite(state.steps, state.at);
  }
  remember(step);
  shown = [];
  results.replaceChildren();
  append(found, step);
  if (!found.results.length) results.append(make("p", {}, step.least ? say("below", step.least) : say("nothing")));
  $("verdict").hidden = !(found.scale && found.results.length && found.results[0].score < found.scale.may_fit);
  if (marked) (results.querySelector(marked) ?? results).focus();
  marked = "";
}

async function search(step, top_k, signal) {
  const weight = step.image && step.text ? step.weight : ""; // of one of them alone there is nothing to weigh
  const form = await formOf(step, {
    negative_text: step.without, where: step.where, top_k,
    image_weight: weight, min_score: step.least, more: idsOf(step.more), less: idsOf(step.less),
  });
  return ask("api/search", { method: "POST", body: form, signal });
}

// Add what was not there yet of an answer, and say how much there is now.
function append(found, step) {
  const before = state.steps.slice(0, state.at + 1);
  const fresh = found.results.slice(shown.length).map((hit) => ({
    ...hit, score: hit.score.toFixed(3), fit: found.scale && (hit.score >= found.scale.may_fit) + (hit.score >= found.scale.fits_well),
    href: addressOf([...before, stepOf({ image: hit.id, where: step.where })]),
  }));
  const start = shown.length;
  shown.push(...fresh);
  $("results").append(...fresh.map((hit, place) => {
    const label = say("rank", hit.rank, hit.path, hit.score, fitOf(hit));
    const link = card(hit, label, hit.rank === 1 ? "preview" : "thumbnail");
    return make("div", { class: "cell" }, link, buttonsOf(start + place, step));
  }));
  const reading = found.reading ? say("read", found.reading) : "";
  const unread = found.warnings.length ? say("unread") : "";
  const count = shown.length ? say("found", shown.length, facts.num_images, found.milliseconds) : "";
  $("status").textContent = [count, reading, unread].filter(Boolean).join(" ");
  const asked = start ? Math.min(MOST, start + MORE) : TOP_K;
  $("next").hidden = shown.length < asked || asked === MOST;
  showMore = async (signal) => {
    const answer = await search(step, Math.min(MOST, shown.length + MORE), signal);
    if (!signal.aborted) append(answer, step);
  };
}

export async function showGallery(signal, choose) {
  $("results").className = "";
  shown = [];
  await appendGallery(signal, choose);
}

async function appendGallery(signal, choose) {
  const start = shown.length;
  const page = await ask(`api/images?start=${start}&count=${PAGE}`, { signal });
  if (signal.aborted) return;
  shown.push(...page.images.map((image) => ({ ...image, href: addressOf([stepOf({ image: image.id })]) })));
  const cells = shown.slice(start).map((image, place) => {
    const link = card(image, say("choose", image.path), "thumbnail");
    link.addEventListener("click", (event) => { // what was typed before goes with the picture
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      choose(image.id);
    });
    return make("div", { class: "cell" }, link, make("div", { class: "marks" }, viewButton(start + place)));
  });
  if (start) $("results").append(...cells); else $("results").replaceChildren(...cells);
  $("next").hidden = shown.length >= page.total || !page.images.length;
  $("status").textContent = page.total ? say("pick") : "";
  if (!page.total) $("results").replaceChildren(make("p", {}, say("none")));
  showMore = (later) => appendGallery(later, choose);
}

// Show the next pictures, unless they are on their way already.
let coming = null;
export function more(signal) {
  coming ??= showMore(signal).finally(() => { coming = null; });
  return coming;
}

export const fitOf = (hit) => Number.isInteger(hit.fit) ? say("fits")[hit.fit] : "";

// Let a link that is dragged onto the query bring its picture.
export function carries(id, link) {
  link.addEventListener("dragstart", (event) => event.dataTransfer.setData(DRAGGED, id));
  return link;
}

function card(image, label, size) {
  const picture = make("img", { src: `api/images/${image.id}?size=${size}`, alt: "", loading: "lazy", decoding: "async" });
  const line = make("span", { class: "line" }, make("span", {}, image.path.split("/").pop()));
  const title = [image.path, image.seen].filter(Boolean).join("\n");
  const link = carries(image.id, make("a", { class: "hit", href: image.href, "aria-label": label, title }, picture, line));
  if (image.score) {
    line.append(" ", make("b", {}, image.score));
    if (fitOf(image)) {
      line.append(" ", make("span", { class: "word" }, fitOf(image)));
      link.append(make("span", { class: `fit fit-${image.fit}`, title: fitOf(image) }));
    }
  }
  return link;
}

function toggle(name, label, isSet, whatFor) {
  const button = make("button", { type: "button", "aria-pressed": isSet, "aria-label": label, title: label }, icon(name));
  button.addEventListener("click", () => whatFor(button));
  return button;
}

function viewButton(place) {
  const label = say("view", shown[place].path);
  const button = make("button", { type: "button", class: "view", "aria-label": label, title: label }, icon("view"));
  button.addEventListener("click", () => view(place));
  return button;
}

// Show a picture large; of a search it can be marked there as well.
export function view(place) {
  if (shown[place]) openViewer(shown, place, { fitOf, mark: current() && mark, isMarked: (kind, id) => idsOf(current()[kind]).includes(id) });
}

function buttonsOf(place, step) {
  const hit = shown[place];
  const buttons = ["more", "less"].map((kind) => {
    const isSet = idsOf(step[kind]).includes(hit.id);
    const button = toggle(kind, say(kind === "more" ? "markMore" : "markLess", hit.path), isSet, () => mark(kind, hit.id));
    button.dataset.mark = `${kind}.${hit.id}`;
    return button;
  });
  if (facts.records && /^[0-9a-f]{32}$/.test(step.image) && step.text && !step.without) buttons.push(meantButton(hit, step));
  const isMarked = [...idsOf(step.more), ...idsOf(step.less)].includes(hit.id) || meant.has(choiceOf(hit, step));
  return make("div", { class: isMarked ? "marks set" : "marks" }, viewButton(place), ...buttons);
}

const choiceOf = (hit, step) => [step.image, step.text, hit.id].join("~");

function meantButton(hit, step) {
  return toggle("meant", say("markMeant", hit.path), meant.has(choiceOf(hit, step)), async (button) => {
    const choice = { image_id: step.image, text: step.text, target: hit.id, shown: shown.slice(0, TOP_K).map((one) => one.id) };
    try {
      await ask("api/meant", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(choice) });
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      return notify(error.message);
    }
    meant.add(choiceOf(hit, step));
    button.setAttribute("aria-pressed", "true");
    button.parentElement.classList.add("set");
    $("status").textContent = say("kept");
  });
}

function mark(kind, id) {
  const step = { ...current() }, wasSet = idsOf(step[kind]).includes(id);
  for (const one of ["more", "less"]) step[one] = idsOf(step[one]).filter((other) => other !== id).join(".");
  if (!wasSet) step[kind] = [...idsOf(step[kind]), id].join(".");
  marked = `[data-mark="${kind}.${id}"]`;
  go([...state.steps.slice(0, state.at), step]);
}

// From the card that has the focus to the one that lies in an arrow's direction.
export function walk(event) {
  const cards = [...$("results").querySelectorAll(".hit")];
  const place = cards.indexOf(document.activeElement);
  if (place < 0) return;
  if (event.key === "v") view(place);
  if (!event.key.startsWith("Arrow")) return;
  const box = cards[place].getBoundingClientRect();
  const below = event.key === "ArrowDown" ? 1 : -1;
  const inLine = (one) => Math.abs(one.left + one.width / 2 - box.left - box.width / 2) < box.width;
  const next = event.key === "ArrowRight" ? cards[place + 1] : event.key === "ArrowLeft" ? cards[place - 1]
    : (below > 0 ? cards.slice(place + 1) : cards.slice(0, place).reverse()).find((one) => {
      const other = one.getBoundingClientRect();
      return below * (other.top - box.top) > 4 && inLine(other);
    });
  if (!next) return;
  event.preventDefault();
  next.focus();
}
