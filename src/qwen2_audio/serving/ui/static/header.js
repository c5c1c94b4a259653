// Language, light or dark.
import { speak } from "./page.js";

export function mount(element) {
  const page = window.qwenAudio;
  const tell = () =>
    element.dispatchEvent(new CustomEvent("language", { detail: { language: page.language } }));
  element.addEventListener("click", (event) => {
    if (event.target.closest(".qa-language")) {
      speak(page.language === "zh" ? "en" : "zh");
      tell();
    } else if (event.target.closest(".qa-dark")) {
      const dark = document.body.classList.toggle("dark");
      page.store("qwen-audio-theme", dark ? "dark" : "light");
    } else if (event.target.closest(".qa-new")) document.querySelector("#qa-clear").click();
    else if (event.target.closest(".qa-gear")) document.querySelector("#qa-settings .toggle-button").click();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.querySelector("#qa-settings.open .toggle-button")?.click();
  });
  if (page.theme) document.body.classList.toggle("dark", page.theme === "dark"); // else as the browser asks for
  if (page.language !== page.preset) tell();
}
