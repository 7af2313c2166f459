// What the page says, in its two languages.

import { store, stored } from "./dom.js";

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
    welcome: "Find a picture by a picture and a sentence",
    how: "Choose a picture to start from and say what should be different. Or describe what you are looking for. Each picture that is found can be the next start.",
    tryOne: "Searches to try, made of the pictures here", exampleOf: (words, path) => words ? `Search from this picture: ${words}` : "Search for what is like this picture",
    answers: (model) => `The model that answers: ${model}.`,
    nothingTyped: "Say what you are looking for, or choose a picture to start from.",
    unshown: "This browser cannot show the picture; the search can still use it.",
    earlier: "Earlier searches", forget: "Forget them", earlierNote: "Kept in this browser alone: sentences and which pictures, no uploads.",
    help: "Keys and gestures", close: "Close",
    keySlash: "go to the sentence", keyArrows: "walk over the pictures", keyEnter: "go on from a picture", keyView: "see a picture large; arrows turn the pages", keyHelp: "this list", keyEsc: "close what is open", keyDrag: "Drag a picture onto the query to start from it.",
    view: (path) => `See ${path} large`, goOn: "Go on from this", open: "Open", download: "Download", previous: "The picture before", following: "The next picture",
    moreLikeThis: "More like this", lessLikeThis: "Less like this",
    fits: ["hardly fits", "may fit", "fits well"],
    nothingFits: "Nothing here fits well: the best picture scores no more than pictures do for things that are not here.",
    searching: "Searching …", busy: "Many are searching now; your search waits its turn …",
    found: (n, all, ms) => `${n} of ${all.toLocaleString("en")} pictures in ${Math.round(ms)} ms. Choose one to go on from it.`,
    read: (reading) => `Read as: ${reading}.`,
    unread: "The model does not read this script, or finds no word in it: the answers owe little to the sentence.",
    "nothing-asked": "Nothing in this can be searched for. Name a thing or a colour, in English.",
    nothing: "No picture fits. Try other words, or a wider path.",
    none: "There are no pictures in this index yet. composir index adds them; they show up here by themselves.",
    rank: (rank, path, score, fit) => `${rank}: ${path} ${score}${fit ? ` ${fit}` : ""}. Go on from this picture`,
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
    gate: (low, high) => `The gate, from ${low} to ${high} here; 0 is dark (left as it is), 1 light (changed by the sentence)`,
    ownMap: (low, high, name) => `${name}: dark is ${low}, light ${high} in this picture`,
    text_attention: () => "Dark to light: where the sentence looks, on one scale for all pictures", attention: () => "Dark to light: where the model looks, on one scale for all pictures",
    lost: "The picture of this step stayed on the device it came from. Choose a picture to go on.",
    "not-a-picture": (suffixes) => `This file is not a picture that can be read. These are: ${suffixes}.`,
    "damaged-picture": "This picture is cut off or damaged.",
    "too-many-pixels": "This picture has too many pixels.", "too-large": "This file is too large.",
    "no-such-image": "This picture is not in the index any more.",
    "image-gone": "The file of this picture is gone or has changed.",
    offline: "The server cannot be reached.", failed: "Something went wrong on the server.",
    noCamera: "The camera cannot be used.",
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
    welcome: "用一张图片和一句话找图片",
    how: "先选一张图片作为起点，再说要有什么不同；也可以直接描述想找的内容。找到的每一张图片都可以作为下一个起点。",
    tryOne: "可以试试的搜索，取自这里的图片", exampleOf: (words) => words ? `从这张图片搜索：${words}` : "搜索与这张图片相似的图片",
    answers: (model) => `正在回答的模型：${model}。`,
    nothingTyped: "请写出想找的内容，或选一张图片作为起点。",
    unshown: "此浏览器无法显示这张图片，但仍可用它搜索。",
    earlier: "以前的搜索", forget: "全部清除", earlierNote: "只保存在此浏览器中：句子，以及是哪些图片；不含上传的图片。",
    help: "按键与操作", close: "关闭",
    keySlash: "跳到输入框", keyArrows: "在图片之间移动", keyEnter: "从这张图片继续", keyView: "放大查看；方向键翻页", keyHelp: "显示此列表", keyEsc: "关闭打开的窗口", keyDrag: "把图片拖到左侧，即可从它开始。",
    view: (path) => `放大查看 ${path}`, goOn: "从这张继续", open: "打开", download: "下载", previous: "上一张", following: "下一张",
    moreLikeThis: "更像这张", lessLikeThis: "不要像这张",
    fits: ["不太符合", "可能符合", "很符合"],
    nothingFits: "这里没有很符合的图片：得分最高的一张，也不高于搜索这里没有的东西时的得分。",
    searching: "正在搜索……", busy: "现在搜索的人很多，正在排队……",
    found: (n, all, ms) => `${all.toLocaleString("zh")} 张图片中的 ${n} 张，用时 ${Math.round(ms)} 毫秒。点一张继续。`,
    read: (reading) => `理解为：${reading}。`,
    unread: "模型不认识这种文字，或其中没有它认识的词：结果基本与这句话无关。请用英文试试。",
    "nothing-asked": "这句话里没有可以搜索的内容。请用英文写出一样东西或一种颜色。",
    nothing: "没有合适的图片。换个说法，或放宽路径。",
    none: "索引里还没有图片。用 composir index 添加后，这里会自动出现。",
    rank: (rank, path, score, fit) => `第 ${rank} 名：${path} ${score}${fit ? ` ${fit}` : ""}。从这张图片继续`,
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
    gate: (low, high) => `门控：这里从 ${low} 到 ${high}；0 为暗（保持原样），1 为亮（随句子改变）`,
    ownMap: (low, high, name) => `${name}：这张图里暗为 ${low}，亮为 ${high}`,
    text_attention: () => "由暗到亮：句子在看哪里（所有图片用同一标度）", attention: () => "由暗到亮：模型在看哪里（所有图片用同一标度）",
    lost: "这一步的图片留在了原来的设备上。请选一张图片继续。",
    "not-a-picture": (suffixes) => `无法把此文件读作图片。可以读的有：${suffixes}。`,
    "damaged-picture": "图片不完整或已损坏。",
    "too-many-pixels": "图片的像素太多。", "too-large": "文件太大。",
    "no-such-image": "这张图片已不在索引中。",
    "image-gone": "这张图片的文件已不在，或已改变。",
    offline: "连接不上服务器。", failed: "服务器出错了。",
    noCamera: "无法使用相机。",
  },
};

let language = stored("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");

export function say(key, ...values) {
  const words = WORDS[language][key] ?? WORDS[language].failed;
  return typeof words === "function" ? words(...values) : words;
}

export function turnLanguage() {
  language = language === "en" ? "zh" : "en";
  store("language", language);
}

// Write into every element that names its words what they are now.
export function writeWords() {
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = say(element.dataset.t);
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", say(element.dataset.label));
    element.title = say(element.dataset.label);
  }
}
