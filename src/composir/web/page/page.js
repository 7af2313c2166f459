// The page: its state is the address behind the #, so every step can be gone back to, reloaded and shared.

const WORDS = {
  en: {
    skip: "To the pictures", api: "API", theme: "Light or dark", language: "中文",
    drop: "Drop or paste a picture, or choose one", look: "Where the model looks", clear: "Without a picture",
    gallery: "Gallery", file: "File", camera: "Camera", text: "What should be different?",
    hint: "the same, but at night", hintAlone: "a dog on the beach", textAlone: "What are you looking for?",
    more: "More", without: "Less of", where: "Only paths like", go: "Search", trail: "How you got here",
    share: "Copy link", shared: "The link is copied.", again: "Try again", next: "More pictures",
    key: "This server asks for its key", wrong: "This is not the key.", enter: "Enter",
    cancel: "Cancel", take: "Take picture",
    size: (n) => `${n.toLocaleString("en")} picture${n === 1 ? "" : "s"}`,
    pick: "Choose a picture to start from, or just type what you are looking for.",
    searching: "Searching …", busy: "Many are searching now; your search waits its turn …",
    found: (n, all, ms) => `${n} of ${all.toLocaleString("en")} pictures in ${Math.round(ms)} ms. Choose one to go on from it.`,
    read: (reading) => `Read as: ${reading}.`,
    unread: "The model does not read this script, or finds no word in it: the answers owe little to the sentence.",
    "nothing-asked": "Nothing in this can be searched for. Name a thing or a colour, in English.",
    nothing: "No picture fits. Try other words, or a wider path.",
    none: "There are no pictures in this index yet. composir index adds them; they show up here by themselves.",
    rank: (rank, path, score) => `${rank}: ${path}, score ${score}. Go on from this picture`,
    choose: (path) => `Start from ${path}`, ownPicture: "your picture", noWords: "similar",
    less: (words) => `without ${words}`,
    weight: "What counts more?", sentence: "Sentence", image: "Picture", least: "Only scores from",
    weighed: (w) => w === 0.5 ? "as the model composes them" : w > 0.5 ? `${Math.round(200 * w - 100)} % towards the picture alone` : `${Math.round(100 - 200 * w)} % towards the sentence alone`,
    markMore: (path) => `More like ${path}`, markLess: (path) => `Less like ${path}`,
    marked: (more, less) => [more && `+${more}`, less && `−${less}`].filter(Boolean).join(" "),
    markMeant: (path) => `This is what I meant: ${path}`, kept: "Kept. What was meant teaches the model at its next training.",
    records: "What you mark ✓ as meant is kept in a file of this server: the sentence, and which pictures of the index. No upload, no network address, and nothing goes elsewhere.",
    "not-recorded": "The server cannot write down what was meant.",
    below: (least) => `No picture scores ${least} or more. Lower the least score, or leave it out.`,
    "cannot-be-asked": "This cannot be searched for as it stands.",
    gate: (low, high) => `The gate, from ${low} (dark, left as it is) to ${high} (light, changed by the sentence)`,
    text_attention: () => "Dark to light: where the sentence looks", attention: () => "Dark to light: where the model looks",
    lost: "The picture of this step stayed on the device it came from. Choose a picture to go on.",
    "not-a-picture": "This file is not a picture that can be read. JPEG, PNG, WebP, GIF and TIFF can.",
    "damaged-picture": "This picture is cut off or damaged.",
    "too-many-pixels": "This picture has too many pixels.", "too-large": "This file is too large.",
    "no-such-image": "This picture is not in the index any more.",
    "image-gone": "The file of this picture is gone or has changed.",
    offline: "The server cannot be reached.", failed: "Something went wrong on the server.",
    noCamera: "The camera cannot be used.", title: "composir",
  },
  zh: {
    skip: "跳到图片", api: "接口", theme: "浅色或深色", language: "English",
    drop: "拖入或粘贴一张图片，或选择一张", look: "模型在看哪里", clear: "不用图片",
    gallery: "图库", file: "文件", camera: "拍照", text: "要有什么不同？",
    hint: "the same, but at night（英文效果最好）", hintAlone: "a dog on the beach（英文效果最好）", textAlone: "想找什么？",
    more: "更多", without: "少一些", where: "只看这样的路径", go: "搜索", trail: "走过的步骤",
    share: "复制链接", shared: "链接已复制。", again: "重试", next: "更多图片",
    key: "此服务器需要密钥", wrong: "密钥不对。", enter: "进入",
    cancel: "取消", take: "拍照",
    size: (n) => `${n.toLocaleString("zh")} 张图片`,
    pick: "选一张图片作为起点，或直接输入想找的内容。",
    searching: "正在搜索……", busy: "现在搜索的人很多，正在排队……",
    found: (n, all, ms) => `${all.toLocaleString("zh")} 张图片中的 ${n} 张，用时 ${Math.round(ms)} 毫秒。点一张继续。`,
    read: (reading) => `理解为：${reading}。`,
    unread: "模型不认识这种文字，或其中没有它认识的词：结果基本与这句话无关。请用英文试试。",
    "nothing-asked": "这句话里没有可以搜索的内容。请用英文写出一样东西或一种颜色。",
    nothing: "没有合适的图片。换个说法，或放宽路径。",
    none: "索引里还没有图片。用 composir index 添加后，这里会自动出现。",
    rank: (rank, path, score) => `第 ${rank} 名：${path}，得分 ${score}。从这张图片继续`,
    choose: (path) => `从 ${path} 开始`, ownPicture: "你的图片", noWords: "相似",
    less: (words) => `不要 ${words}`,
    weight: "哪个更重要？", sentence: "句子", image: "图片", least: "只看得分不低于",
    weighed: (w) => w === 0.5 ? "按模型自己的组合" : w > 0.5 ? `向仅图片移动 ${Math.round(200 * w - 100)}%` : `向仅句子移动 ${Math.round(100 - 200 * w)}%`,
    markMore: (path) => `更像 ${path}`, markLess: (path) => `不要像 ${path}`,
    marked: (more, less) => [more && `+${more}`, less && `−${less}`].filter(Boolean).join(" "),
    markMeant: (path) => `我要的就是这张：${path}`, kept: "已记下。下次训练时，模型会从中学习。",
    records: "用 ✓ 标出的选择会写入此服务器上的一个文件：句子，以及是索引中的哪些图片。不记录上传的图片和网络地址，也不发往别处。",
    "not-recorded": "服务器无法写下这个选择。",
    below: (least) => `没有图片的得分达到 ${least}。请降低最低得分，或不填。`,
    "cannot-be-asked": "这样无法搜索。",
    gate: (low, high) => `门控：从 ${low}（暗，保持原样）到 ${high}（亮，随句子改变）`,
    text_attention: () => "由暗到亮：句子在看哪里", attention: () => "由暗到亮：模型在看哪里",
    lost: "这一步的图片留在了原来的设备上。请选一张图片继续。",
    "not-a-picture": "无法把此文件读作图片。支持 JPEG、PNG、WebP、GIF 和 TIFF。",
    "damaged-picture": "图片不完整或已损坏。",
    "too-many-pixels": "图片的像素太多。", "too-large": "文件太大。",
    "no-such-image": "这张图片已不在索引中。",
    "image-gone": "这张图片的文件已不在，或已改变。",
    offline: "连接不上服务器。", failed: "服务器出错了。",
    noCamera: "无法使用相机。", title: "composir",
  },
};
const TOP_K = 24, PAGE = 60, MAX_TRIES = 5, LARGE_FILE = 8e6, SENT_SIDE = 2048, KEPT_SIDE = 640, HOVER_MS = 150, COMPOSED = "0.5";

const $ = (id) => document.getElementById(id);
const stored = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
const store = (name, value) => { try { localStorage.setItem(name, value); } catch { /* private window: not kept */ } };
let language = stored("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");
const say = (key, ...values) => {
  const words = WORDS[language][key] ?? WORDS[language].failed;
  return typeof words === "function" ? words(...values) : words;
};

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.append(document.createElementNS("http://www.w3.org/2000/svg", "use"));
  svg.firstChild.setAttribute("href", `#i-${name}`);
  return svg;
}

// -- the address: #STEP/STEP!AT, a step being its PARTS with ~ between them -------------------------------------------

const PARTS = { // what each may be; the ids of marks have . between them
  image: /^([0-9a-f]{32}|upload\.\d+)$/, text: /^/, without: /^/, where: /^/,
  weight: /^(0|1|0\.\d+)$/, least: /^-?(\d+\.?\d*|\.\d+)$/, more: /^[0-9a-f]{32}(\.[0-9a-f]{32})*$/, less: /^[0-9a-f]{32}(\.[0-9a-f]{32})*$/,
};
const NAMES = Object.keys(PARTS);
const stepOf = (given) => Object.fromEntries(NAMES.map((name) => [name, PARTS[name].test(given[name] ?? "") ? given[name] ?? "" : ""]));
const idsOf = (marks) => marks.split(".").filter(Boolean);
const code = (text) => encodeURIComponent(text).replace(/[!~'()*]/g, (c) => `%${c.charCodeAt(0).toString(16)}`);
const decode = (text) => { try { return decodeURIComponent(text); } catch { return ""; } };

function addressOf(steps, at = steps.length - 1) {
  const parts = steps.map((step) => NAMES.map((name) => code(step[name])).join("~").replace(/~+$/, ""));
  return `#${parts.join("/")}${at < steps.length - 1 ? `!${at}` : ""}`;
}

function readAddress() {
  const [path, at] = location.hash.slice(1).split("!");
  const steps = path ? path.split("/").map((part) => {
    const values = part.split("~").map(decode);
    return stepOf(Object.fromEntries(NAMES.map((name, place) => [name, values[place]])));
  }) : [];
  const last = steps.length - 1;
  return { steps, at: /^\d+$/.test(at ?? "") ? Math.min(Number(at), last) : last };
}

let state = readAddress();
const current = () => state.steps[state.at];
const go = (steps, at) => {
  const address = addressOf(steps, at);
  if (address === (location.hash || "#")) show(); else location.hash = address;
};

// -- pictures that were uploaded: kept in this tab only ---------------------------------------------------------------

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

async function keepUpload(file) {
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
async function sourceOf(image, size) {
  if (!image.startsWith("upload.")) return `api/images/${image}?size=${size}`;
  const blob = await uploadOf(image);
  if (blob && !addresses.has(image)) addresses.set(image, URL.createObjectURL(blob));
  return addresses.get(image);
}

// -- the server -------------------------------------------------------------------------------------------------------

class Failure extends Error {}

async function ask(path, options = {}, tries = 0) {
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

async function formOf(step, more = {}) {
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

// -- what is shown ----------------------------------------------------------------------------------------------------

let total = 0, canLook = false, records = false, running = null, listed = 0;

async function show() {
  state = readAddress();
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  const step = current();
  $("text").value = step?.text ?? "";
  $("without").value = step?.without ?? "";
  $("where").value = step?.where ?? "";
  $("least").value = step?.least ?? "";
  $("weight").value = step?.weight || COMPOSED;
  $("balance").hidden = !step?.image;
  $("more").open ||= Boolean(step?.without || step?.where || step?.least);
  $("notice").hidden = $("next").hidden = true;
  showWords();
  showReference(step);
  showTrail();
  try {
    await (step ? showFound(step, signal) : showGallery(signal));
  } catch (error) {
    if (!signal.aborted) showFailure(error);
  }
}

function showFailure(error) {
  if (!(error instanceof Failure)) throw error;
  $("results").replaceChildren();
  $("status").textContent = "";
  notify(error.message, ["offline", "failed", "busy", ""].includes(error.message));
}

function notify(key, canRetry) {
  $("notice").hidden = false;
  $("notice").firstElementChild.textContent = say(key);
  $("again").hidden = !canRetry;
}

async function showFound(step, signal) {
  $("status").textContent = say("searching");
  const results = $("results");
  results.className = "found";
  const slow = setTimeout(() => results.replaceChildren(...Array.from({ length: 8 }, () => make("div", { class: "waiting" }))), HOVER_MS);
  let found;
  try {
    const weight = step.image && step.text ? step.weight : ""; // of one of them alone there is nothing to weigh
    const form = await formOf(step, {
      negative_text: step.without, where: step.where, top_k: TOP_K,
      image_weight: weight, min_score: step.least, more: idsOf(step.more), less: idsOf(step.less),
    });
    found = await ask("api/search", { method: "POST", body: form, signal });
  } finally {
    clearTimeout(slow);
  }
  if (signal.aborted) return;
  if (found.reference && found.reference !== step.image) { // it is in the index: the address can say which
    step.image = found.reference;
    history.replaceState(null, "", addressOf(state.steps, state.at));
    showTrail();
  }
  const reading = found.reading ? say("read", found.reading) : "";
  const unread = found.warnings.length ? say("unread") : "";
  const count = found.results.length ? say("found", found.results.length, total, found.milliseconds) : "";
  $("status").textContent = [count, reading, unread].filter(Boolean).join(" ");
  const before = state.steps.slice(0, state.at + 1);
  results.replaceChildren(...found.results.map((hit) => {
    const next = stepOf({ image: hit.id, where: step.where });
    const score = hit.score.toFixed(3);
    const link = card(hit, addressOf([...before, next]), say("rank", hit.rank, hit.path, score), hit.rank === 1 ? "preview" : "thumbnail", score);
    return make("div", { class: "cell" }, link, marksOf(hit, step, found.results));
  }));
  if (!found.results.length) results.append(make("p", {}, step.least ? say("below", step.least) : say("nothing")));
  describe().catch(() => {});
  if (marked) (results.querySelector(marked) ?? results).focus();
  marked = "";
}

let marked = ""; // the button that was pressed last, which keeps the focus

function marksOf(hit, step, shown) {
  const buttons = ["more", "less"].map((kind) => {
    const label = say(kind === "more" ? "markMore" : "markLess", hit.path);
    const isSet = idsOf(step[kind]).includes(hit.id);
    const button = make("button", { type: "button", "data-mark": `${kind}.${hit.id}`, "aria-pressed": isSet, "aria-label": label, title: label }, icon(kind));
    button.addEventListener("click", () => mark(kind, hit.id));
    return button;
  });
  if (records && /^[0-9a-f]{32}$/.test(step.image) && step.text && !step.without) buttons.push(meantButton(hit, step, shown));
  const isMarked = [...idsOf(step.more), ...idsOf(step.less)].includes(hit.id) || meant.has(choiceOf(hit, step));
  return make("div", { class: isMarked ? "marks set" : "marks" }, ...buttons);
}

const meant = new Set(); // the choices of this page's visit
const choiceOf = (hit, step) => [step.image, step.text, hit.id].join("~");

function meantButton(hit, step, shown) {
  const label = say("markMeant", hit.path);
  const button = make("button", { type: "button", "aria-pressed": meant.has(choiceOf(hit, step)), "aria-label": label, title: label }, icon("meant"));
  button.addEventListener("click", async () => {
    const choice = { image_id: step.image, text: step.text, target: hit.id, shown: shown.map((one) => one.id) };
    try {
      await ask("api/meant", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(choice) });
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      return notify(error.message, false);
    }
    meant.add(choiceOf(hit, step));
    button.setAttribute("aria-pressed", "true");
    button.parentElement.classList.add("set");
    $("status").textContent = say("kept");
  });
  return button;
}

function mark(kind, id) {
  const step = { ...current() }, wasSet = idsOf(step[kind]).includes(id);
  for (const one of ["more", "less"]) step[one] = idsOf(step[one]).filter((other) => other !== id).join(".");
  if (!wasSet) step[kind] = [...idsOf(step[kind]), id].join(".");
  marked = `[data-mark="${kind}.${id}"]`;
  go([...state.steps.slice(0, state.at), step]);
}

async function showGallery(signal, start = 0) {
  const results = $("results");
  results.className = "";
  const page = await ask(`api/images?start=${start}&count=${PAGE}`, { signal });
  if (signal.aborted) return;
  const cards = page.images.map((image) => {
    const step = stepOf({ image: image.id });
    const link = card(image, addressOf([step]), say("choose", image.path), "thumbnail");
    link.addEventListener("click", (event) => { // what was typed before goes with the picture
      if (event.metaKey || event.ctrlKey || event.shiftKey) return;
      event.preventDefault();
      choose(image.id);
    });
    return make("div", { class: "cell" }, link);
  });
  if (start) results.append(...cards); else results.replaceChildren(...cards);
  listed = start + page.images.length;
  $("next").hidden = listed >= page.total || !page.images.length;
  $("status").textContent = page.total ? say("pick") : "";
  if (!page.total) results.replaceChildren(make("p", {}, say("none")));
}

function card(image, href, label, size, score) {
  const picture = make("img", { src: `api/images/${image.id}?size=${size}`, alt: "", loading: "lazy", decoding: "async" });
  const line = make("span", { class: "line" }, make("span", {}, image.path.split("/").pop()));
  const link = make("a", { class: "hit", href, "aria-label": label, title: [image.path, image.seen].filter(Boolean).join("\n") }, picture, line);
  if (score) {
    line.append(make("b", {}, score));
    const bar = make("span", { class: "bar" });
    bar.style.width = `${100 * Math.max(0, Math.min(1, Number(score)))}%`;
    link.append(bar);
  }
  return link;
}

async function showReference(step) {
  const image = step?.image ?? "";
  const source = image && await sourceOf(image, "preview");
  if (step !== current()) return;
  look(false);
  $("picture").hidden = !source;
  $("look").hidden = !source || !canLook;
  $("clear").hidden = !image;
  if (source) $("picture").src = source; else $("picture").removeAttribute("src");
  $("picture").alt = image.startsWith("upload.") ? say("ownPicture") : "";
  $("heat").hidden = true;
}

async function showTrail() {
  const { steps, at } = state;
  const items = await Promise.all(steps.map(async (step, place) => {
    const source = step.image && await sourceOf(step.image, "thumbnail");
    const words = [step.text, step.without && say("less", step.without), say("marked", idsOf(step.more).length, idsOf(step.less).length)].filter(Boolean).join(", ") || say("noWords");
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
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = say(element.dataset.t);
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", say(element.dataset.label));
    element.title = say(element.dataset.label);
  }
  const alone = !current()?.image;
  document.querySelector("label[for=text]").textContent = say(alone && state.steps.length ? "textAlone" : "text");
  $("text").placeholder = say(alone ? "hintAlone" : "hint");
  weigh();
  $("language").textContent = say("language");
  $("size").textContent = total ? say("size", total) : "";
  $("records").hidden = !records;
}

$("picture").addEventListener("error", () => { $("picture").hidden = true; }); // HEIC, which not every browser shows

// -- the heat map -----------------------------------------------------------------------------------------------------

const maps = new Map();
let pinned = false;

async function look(on) {
  const step = current();
  pinned &&= on;
  $("frame").classList.toggle("looking", false);
  $("legend").hidden = true;
  $("look").setAttribute("aria-pressed", String(on));
  if (!on || !canLook || !step?.image) return;
  const key = `${step.image}~${step.text}`;
  if (!maps.has(key)) maps.set(key, formOf(step).then((body) => ask("api/heat", { method: "POST", body })));
  try {
    const map = await maps.get(key);
    if (step !== current() || $("look").getAttribute("aria-pressed") !== "true") return;
    $("heat").src = map.picture;
    $("heat").hidden = false;
    await $("heat").decode();
    $("frame").classList.add("looking");
    $("meaning").textContent = say(map.map, map.low.toFixed(2), map.high.toFixed(2));
    $("legend").hidden = false;
  } catch (error) {
    maps.delete(key);
    if (error instanceof Failure && step === current()) notify(error.message, false);
  }
}

let hovering = 0;
$("frame").addEventListener("pointerenter", (event) => {
  if (event.pointerType === "mouse") hovering = setTimeout(look, HOVER_MS, true);
});
$("frame").addEventListener("pointerleave", () => { clearTimeout(hovering); if (!pinned) look(false); });
$("look").addEventListener("focus", () => { if ($("look").matches(":focus-visible")) look(true); });
$("look").addEventListener("blur", () => { if (!pinned) look(false); });
$("look").addEventListener("click", () => { pinned = !pinned; look(pinned); });

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
  if (!step.image && !step.text) return $("text").focus();
  go([...state.steps.slice(0, Math.max(0, state.at)), step]);
});
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("ask").requestSubmit();
});
$("weight").addEventListener("input", weigh);
$("weight").addEventListener("change", () => { // it moves often: the step is put another way, and is no new one
  const step = { ...current(), ...typed() };
  if (!step.image || !step.text) return;
  history.replaceState(null, "", addressOf([...state.steps.slice(0, state.at), step]));
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
$("next").addEventListener("click", () => showGallery(running.signal, listed).catch(showFailure));
$("share").addEventListener("click", async () => {
  await navigator.clipboard?.writeText(location.href).catch(() => {});
  $("status").textContent = say("shared");
});

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
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  take(event.dataTransfer.files[0]);
});

document.querySelector(".skip").addEventListener("click", (event) => { // its # is no step
  event.preventDefault();
  $("results").focus();
});
addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.target.closest("input, textarea, dialog")) {
    event.preventDefault();
    $("text").focus();
  }
  const cards = [...$("results").querySelectorAll(".hit")];
  const place = cards.indexOf(document.activeElement);
  if (place < 0 || !event.key.startsWith("Arrow")) return;
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
});

$("camera").addEventListener("click", async () => {
  if (!navigator.mediaDevices?.getUserMedia || matchMedia("(pointer: coarse)").matches) return $("shot").click();
  const stream = await navigator.mediaDevices.getUserMedia({ video: true }).catch(() => null);
  if (!stream) return notify("noCamera", false);
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
  language = language === "en" ? "zh" : "en";
  store("language", language);
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

async function describe() { // the index may have grown, and another head may answer
  const health = await ask("api/health");
  total = health.num_images;
  canLook = health.heat;
  records = health.records;
  $("about").textContent = health.model;
  $("look").hidden ||= !canLook;
  showWords();
}

addEventListener("hashchange", show);
describe().catch(() => {}).finally(show);
