// What is sent to the server and what it answers; pictures that were uploaded are kept in this tab only.

import { $, make } from "./dom.js";
import { say } from "./text.js";

const MAX_TRIES = 5, LARGE_FILE = 8e6, SENT_SIDE = 2048, KEPT_SIDE = 640;

// What the server says of itself; the index may grow, and another head may answer.
export const facts = { num_images: 0, model: "", heat: false, records: false, suffixes: [] };
export async function readFacts() { Object.assign(facts, await ask("api/health")); }

const uploads = new Map();
let numUploads = 0;

async function shrink(blob, side) {
  const bitmap = await createImageBitmap(blob);
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const canvas = make("canvas", { width: Math.round(bitmap.width * scale), height: Math.round(bitmap.height * scale) });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas;
}

export async function keepUpload(file) {
  let blob = file;
  if (file.size > LARGE_FILE) { // as a phone's camera makes them: sent smaller, the model sees far less anyway
    const canvas = await shrink(file, SENT_SIDE).catch(() => null);
    if (canvas) blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
  }
  do numUploads += 1; while (sessionStorage.getItem(`upload.${numUploads}`));
  const name = `upload.${numUploads}`;
  uploads.set(name, blob);
  shrink(blob, KEPT_SIDE).then((canvas) => sessionStorage.setItem(name, canvas.toDataURL("image/jpeg", 0.9))).catch(() => {});
  return name;
}

async function uploadOf(name) {
  const kept = sessionStorage.getItem(name);
  if (!uploads.has(name) && kept) {
    const bytes = Uint8Array.from(atob(kept.split(",")[1]), (c) => c.charCodeAt(0));
    uploads.set(name, new Blob([bytes], { type: "image/jpeg" }));
  }
  return uploads.get(name);
}

const addresses = new Map();
export async function sourceOf(image, size) {
  if (!image.startsWith("upload.")) return `api/images/${image}?size=${size}`;
  const blob = await uploadOf(image);
  if (blob && !addresses.has(image)) addresses.set(image, URL.createObjectURL(blob));
  return addresses.get(image);
}

// -- the server's answers ---------------------------------------------------------------------------------------------

export class Failure extends Error {}

export async function ask(path, options = {}, tries = 0) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new Failure("offline");
  }
  if (response.ok) return response.json();
  const problem = await response.json().catch(() => ({}));
  if (response.status === 401) {
    await login();
    return ask(path, options, tries);
  }
  if (response.status === 503 && tries < MAX_TRIES) {
    $("status").textContent = say("busy");
    await new Promise((done) => setTimeout(done, 1000 * (Number(response.headers.get("Retry-After")) || 1)));
    return ask(path, options, tries + 1);
  }
  throw new Failure(String(problem.type ?? "").replace("urn:composir:problem:", ""));
}

let entering = null;
function login() {
  entering ??= new Promise((done) => {
    const dialog = $("login");
    dialog.oncancel = (event) => event.preventDefault();
    dialog.querySelector("form").onsubmit = async (event) => {
      event.preventDefault();
      const headers = { Authorization: `Bearer ${$("key").value}` };
      const response = await fetch("api/session", { method: "POST", headers }).catch(() => null);
      $("wrong").hidden = Boolean(response?.ok);
      if (!response?.ok) return;
      $("key").value = "";
      dialog.close();
      entering = null;
      done();
    };
    dialog.showModal();
  });
  return entering;
}

export async function formOf(step, more = {}) {
  const form = new FormData();
  if (step.image.startsWith("upload.")) {
    const blob = await uploadOf(step.image);
    if (!blob) throw new Failure("lost");
    form.append("image", blob, "upload");
  } else if (step.image) {
    form.append("image_id", step.image);
  }
  for (const [name, value] of Object.entries({ text: step.text, ...more })) for (const one of [value].flat()) if (one) form.append(name, one);
  return form;
}
