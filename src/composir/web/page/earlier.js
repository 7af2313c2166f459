// Earlier searches, which outlive a reload: ids and sentences, kept by this browser alone.

import { $, icon, make, store, stored } from "./dom.js";
import { addressOf, stepsOf, wordsOf } from "./steps.js";

const MOST = 30;

function kept() {
  try { return JSON.parse(stored("earlier") ?? "[]").filter((one) => typeof one === "string"); } catch { return []; }
}

function keep(addresses) {
  store("earlier", JSON.stringify(addresses.slice(0, MOST)));
  showEarlier();
}

// Keep a step that was answered. One by an upload cannot be asked again after the tab is closed: it is left out.
export function remember(step) {
  if (step.image.startsWith("upload.")) return;
  const address = addressOf([step]);
  keep([address, ...kept().filter((one) => one !== address)]);
}

export function showEarlier() {
  const addresses = kept();
  $("earlier").hidden = !addresses.length;
  $("earlier").querySelector("ol").replaceChildren(...addresses.map((address) => {
    const [step] = stepsOf(address);
    const picture = step.image ? make("img", { src: `api/images/${step.image}?size=thumbnail`, alt: "", loading: "lazy" }) : icon("search");
    picture.addEventListener("error", () => keep(kept().filter((one) => one !== address))); // gone, or of another index
    return make("li", {}, make("a", { href: address }, picture, make("span", {}, wordsOf(step))));
  }));
}

$("forget").addEventListener("click", () => keep([]));
