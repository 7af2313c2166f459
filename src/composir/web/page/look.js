// The heat map over the reference: where the model looks for the sentence.

import { $ } from "./dom.js";
import { notify } from "./results.js";
import { Failure, ask, facts, formOf } from "./server.js";
import { current } from "./steps.js";
import { say } from "./text.js";

const HOVER_MS = 150;
const KNOWN_MAPS = ["gate", "text_attention", "attention"]; // others are of fusions that somebody has added
const maps = new Map();
let pinned = false, hovering = 0;

// Without a sentence there is nothing that it would show.
const canLook = (step) => facts.heat && Boolean(step?.image && step.text);

export function offerLook() {
  $("look").hidden = !canLook(current()) || $("picture").hidden;
  if ($("look").hidden) look(false);
}

export const stopLooking = () => look(false);

async function look(on) {
  const step = current();
  pinned &&= on;
  $("frame").classList.toggle("looking", false);
  $("heat").hidden = $("legend").hidden = true;
  $("look").setAttribute("aria-pressed", String(on));
  if (!on || !canLook(step)) return;
  const key = `${step.image}~${step.text}`;
  if (!maps.has(key)) maps.set(key, formOf(step).then((body) => ask("api/heat", { method: "POST", body })));
  try {
    const map = await maps.get(key);
    if (step !== current() || $("look").getAttribute("aria-pressed") !== "true") return;
    $("heat").src = map.picture;
    $("heat").hidden = false;
    await $("heat").decode();
    $("frame").classList.add("looking");
    const values = map.values.flat();
    const ends = [Math.min(...values).toFixed(2), Math.max(...values).toFixed(2)];
    $("meaning").textContent = say(KNOWN_MAPS.includes(map.map) ? map.map : "ownMap", ...ends, map.map);
    $("legend").hidden = false;
  } catch (error) {
    maps.delete(key);
    if (error instanceof Failure && step === current()) notify(error.message);
  }
}

$("frame").addEventListener("pointerenter", (event) => {
  if (event.pointerType === "mouse") hovering = setTimeout(look, HOVER_MS, true);
});
$("frame").addEventListener("pointerleave", () => { clearTimeout(hovering); if (!pinned) look(false); });
$("look").addEventListener("focus", () => { if ($("look").matches(":focus-visible")) look(true); });
$("look").addEventListener("blur", () => { if (!pinned) look(false); });
$("look").addEventListener("click", () => { pinned = !pinned; look(pinned); });
