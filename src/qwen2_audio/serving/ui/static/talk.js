// Press and speak, and the switch to hands-free talk.
import { MicrophoneError, leave, levelOf, openMicrophone, wavOf } from "./microphone.js";
import { HandsFree } from "./handsfree.js";

const TAP_MS = 350; // let go sooner: a tap, and recording goes on until the next one
const SHORTEST_SECONDS = 0.3;
const LONGEST_SECONDS = 300;

export function mount(element) {
  const bar = element.querySelector(".qa-talk");
  if (!bar) return;
  new Talk(element, bar);
  bar.dataset.ready = "";
}

class Talk {
  constructor(element, bar) {
    this.element = element;
    this.bar = bar;
    this.state = bar.querySelector(".qa-state");
    this.discard = bar.querySelector(".qa-discard");
    this.press = bar.querySelector(".qa-press");
    this.level = bar.querySelector(".qa-level");
    this.toggle = bar.querySelector(".qa-handsfree");
    this.recording = null;
    this.free = null;
    this.press.addEventListener("pointerdown", (event) => this.down(event));
    this.press.addEventListener("pointerup", () => this.up());
    this.press.addEventListener("click", (event) => event.detail === 0 && this.tap()); // by keyboard
    this.press.addEventListener("contextmenu", (event) => event.preventDefault());
    this.discard.addEventListener("click", () => this.finish(false));
    this.toggle.addEventListener("change", () => (this.toggle.checked ? this.listen() : this.rest()));
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.silence());
    addEventListener("qwen-emptied", () => this.again());
    addEventListener("pagehide", () => { this.finish(false); this.rest(); });
  }

  show(state, key) {
    this.bar.dataset.state = state;
    this.state.dataset.t = key;
    this.state.textContent = window.qwenAudio.say(key);
    this.press.setAttribute("aria-pressed", String(state === "recording"));
    this.discard.hidden = state !== "recording";
  }

  complain(error) {
    const key = error instanceof MicrophoneError ? error.key : null;
    this.show("problem", key || "talk.hint");
    if (!key) this.state.textContent = error.message;
  }

  // What became of a recording; not where another one, or hands-free talk, has begun meanwhile.
  report(show) {
    if (!this.recording && !this.free) show();
  }

  draw(block) {
    this.level.style.setProperty("--level", levelOf(block).toFixed(3));
  }

  down(event) {
    if (event.button !== 0 || this.free) return;
    if (this.recording) return void (this.ending = true);
    this.press.setPointerCapture(event.pointerId);
    this.ending = false;
    this.pressed = performance.now();
    this.start();
  }

  up() {
    if (this.free) return;
    if (this.ending) return this.finish(true);
    if (performance.now() - (this.pressed ?? 0) > TAP_MS) this.finish(true);
  }

  tap() {
    if (this.free) return;
    if (this.recording) this.finish(true);
    else this.start();
  }

  async start() {
    if (this.recording) return;
    const recording = { blocks: [], seconds: 0, microphone: null, over: null };
    this.recording = recording;
    dispatchEvent(new CustomEvent("qwen-hush"));
    this.show("recording", "talk.recording");
    try {
      recording.microphone = await openMicrophone((block) => {
        recording.blocks.push(block);
        recording.seconds += block.length / recording.microphone.rate;
        this.draw(block);
        if (recording.seconds > LONGEST_SECONDS) this.finish(true);
      });
    } catch (error) {
      this.recording = null;
      return this.report(() => this.complain(error));
    }
    if (recording.over !== null) this.end(recording); // let go before the microphone was open
  }

  finish(send) {
    const recording = this.recording;
    if (!recording || recording.over !== null) return;
    recording.over = send;
    if (recording.microphone) this.end(recording);
  }

  async end(recording) {
    recording.microphone.close();
    this.recording = null;
    this.level.style.setProperty("--level", "0");
    if (!recording.over) return this.report(() => this.show("idle", "talk.hint"));
    if (recording.seconds < SHORTEST_SECONDS) return this.report(() => this.show("problem", "talk.short"));
    this.report(() => this.show("sending", "talk.sending"));
    try {
      const token = await leave(wavOf(recording.blocks, recording.microphone.rate));
      this.element.dispatchEvent(new CustomEvent("spoken", { detail: { token } }));
      this.report(() => this.show("idle", "talk.hint"));
    } catch (error) {
      this.report(() => this.complain(error));
    }
  }

  listen() {
    this.finish(false);
    this.free = new HandsFree(this.bar, {
      show: (state, key) => this.show(state, key),
      level: (block) => this.draw(block),
      heard: (turn) => this.element.dispatchEvent(new CustomEvent("heard", { detail: turn })),
      ended: (error) => {
        this.free = null;
        this.toggle.checked = false;
        this.level.style.setProperty("--level", "0");
        if (error) this.complain(error);
        else this.show("idle", "talk.hint");
      },
    });
  }

  silence() {
    if (this.recording) this.finish(false);
    this.free?.hush();
  }

  // The conversation was emptied: hands-free talk forgets it, too.
  again() {
    if (!this.free) return;
    this.free.forget();
    this.toggle.checked = true;
    this.listen();
  }

  rest() {
    this.free?.close();
  }
}
