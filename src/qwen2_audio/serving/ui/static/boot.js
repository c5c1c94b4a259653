// Before the other scripts, in the page itself: the language that the visitor chose last time, or that the browser asks for.
(() => {
  const stored = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
  const page = window.qwenAudio;
  const known = Object.keys(page.texts);
  const wished = [new URLSearchParams(location.search).get("lang"), stored("qwen-audio-language"), ...navigator.languages];
  page.language = wished.map((tag) => (tag || "").toLowerCase().split("-")[0]).find((tag) => known.includes(tag)) || page.preset;
  document.documentElement.lang = page.language === "zh" ? "zh-CN" : "en";
  // Gradio's own texts (tooltips and the like) follow the browser's language: let it see the visitor's choice
  const tag = page.language === "zh" ? "zh-CN" : "en";
  Object.defineProperty(navigator, "language", { get: () => tag, configurable: true });
  Object.defineProperty(navigator, "languages", { get: () => [tag], configurable: true });
  page.say = (key) => page.texts[page.language][key] ?? key;
  page.store = (name, value) => { try { localStorage.setItem(name, value); } catch { /* then it is forgotten */ } };
  page.theme = stored("qwen-audio-theme");
})();
