// The steps are the address, #STEP/STEP!AT, a step being its PARTS with ~ between them: so each can be gone back to,
// reloaded and shared.

import { say } from "./text.js";

const PARTS = { // what each may be; the ids of marks have . between them
  image: /^([0-9a-f]{32}|upload\.\d+)$/, text: /^/, without: /^/, where: /^/,
  weight: /^(0|1|0\.\d+)$/, least: /^-?(\d+\.?\d*|\.\d+)$/, more: /^[0-9a-f]{32}(\.[0-9a-f]{32})*$/, less: /^[0-9a-f]{32}(\.[0-9a-f]{32})*$/,
};
const NAMES = Object.keys(PARTS);
export const stepOf = (given) => Object.fromEntries(NAMES.map((name) => [name, PARTS[name].test(given[name] ?? "") ? given[name] ?? "" : ""]));
export const idsOf = (marks) => marks.split(".").filter(Boolean);
const code = (text) => encodeURIComponent(text).replace(/[!~'()*]/g, (c) => `%${c.charCodeAt(0).toString(16)}`);
const decode = (text) => { try { return decodeURIComponent(text); } catch { return ""; } };

export function addressOf(steps, at = steps.length - 1) {
  const parts = steps.map((step) => NAMES.map((name) => code(step[name])).join("~").replace(/~+$/, ""));
  return `#${parts.join("/")}${at < steps.length - 1 ? `!${at}` : ""}`;
}

export function stepsOf(address) {
  const path = address.slice(1).split("!")[0];
  return path ? path.split("/").map((part) => {
    const values = part.split("~").map(decode);
    return stepOf(Object.fromEntries(NAMES.map((name, place) => [name, values[place]])));
  }) : [];
}

function readAddress() {
  const steps = stepsOf(location.hash), at = location.hash.split("!")[1] ?? "", last = steps.length - 1;
  return { steps, at: /^\d+$/.test(at) ? Math.min(Number(at), last) : last };
}

export let state = readAddress();
export function readSteps() { state = readAddress(); }
export const current = () => state.steps[state.at];

export function go(steps, at) {
  const address = addressOf(steps, at);
  if (address === (location.hash || "#")) dispatchEvent(new HashChangeEvent("hashchange")); else location.hash = address;
}

// Put the steps another way, which is no new one to go back to.
export function rewrite(steps, at) { history.replaceState(null, "", addressOf(steps, at)); }

// What a step asks for beside its picture, in a few words.
export function wordsOf(step) {
  const marks = say("marked", idsOf(step.more).length, idsOf(step.less).length);
  return [step.text, step.without && say("less", step.without), marks].filter(Boolean).join(", ") || say("noWords");
}
