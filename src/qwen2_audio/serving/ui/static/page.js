// Puts the texts of the page's language where they belong, and mends what Gradio's own parts lack for screen readers.
const page = window.qwenAudio;

export function translate(root) {
  for (const part of root.querySelectorAll("[data-t]")) {
    const text = page.say(part.dataset.t);
    if (part.textContent !== text) part.textContent = text;
  }
  for (const part of root.querySelectorAll("[data-t-label]")) {
    const text = page.say(part.dataset.tLabel);
    if (part.getAttribute("aria-label") !== text) {
      part.setAttribute("aria-label", text);
      if (part.tagName === "BUTTON") part.title = text;
    }
  }
}

export function speak(language) {
  page.language = language;
  page.store("qwen-audio-language", language);
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  translate(document);
  mend(document);
  document.dispatchEvent(new CustomEvent("qwen-language"));
}

// Gradio's part -> the text that names it
const NAMES = [
  ["#qa-composer .submit-button", "composer.send"],
  ["#qa-composer .stop-button", "composer.stop"],
  ["#qa-composer .upload-button", "composer.attach"],
  ["#qa-composer textarea", "composer.label"],
  ["#qa-composer input[type=file]", "composer.attach"],
  ["#qa-settings .toggle-button", "header.settings"],
];

function mend(root) {
  for (const [selector, key] of NAMES) {
    for (const part of root.querySelectorAll(selector)) {
      const text = page.say(key);
      if (part.getAttribute("aria-label") !== text) part.setAttribute("aria-label", text);
      if (part.tagName === "BUTTON" && part.title !== text) part.title = text;
    }
  }
}

let waiting = false;
new MutationObserver(() => {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    translate(document);
    mend(document);
  });
}).observe(document.documentElement, { childList: true, subtree: true });
translate(document);
