// Reads answers aloud, sentence by sentence, while they are still being written.
export function mount(element, props, watch) {
  const reader = new Reader();
  watch("value", () => {
    const told = props.value && JSON.parse(props.value);
    if (!told) return;
    if (told.emptied) dispatchEvent(new CustomEvent("qwen-emptied"));
    if (told.hush) reader.hush();
    else reader.follow(told);
  });
  addEventListener("qwen-hush", () => reader.hush());
  document.addEventListener("keydown", (event) => event.key === "Escape" && reader.hush());
}

const SENTENCE = /[^.!?。！？；;\n]*[.!?。！？；;\n]+["'”’)\]]*\s*/gy;

export class Reader {
  constructor() {
    this.turn = null;
    this.silenced = null; // the answer of which no more is to be read
    this.spoken = 0;
    this.queue = Promise.resolve();
    this.round = 0;
    this.waiting = 0; // sentences not yet spoken to their end
    this.idle = () => {};
  }

  get busy() {
    return this.waiting > 0;
  }

  follow({ turn, text, done, voice }) {
    if (turn === this.silenced) return;
    if (turn !== this.turn) {
      this.hush();
      this.turn = turn;
      this.spoken = 0;
    }
    SENTENCE.lastIndex = this.spoken;
    for (let match = SENTENCE.exec(text); match; match = SENTENCE.exec(text)) {
      this.say(match[0], voice);
      this.spoken = SENTENCE.lastIndex;
    }
    if (done && this.spoken < text.length) {
      this.say(text.slice(this.spoken), voice);
      this.spoken = text.length;
    }
    if (done) this.turn = null;
  }

  say(text, voice) {
    if (!text.trim()) return;
    const round = this.round;
    this.waiting += 1;
    this.queue = this.queue
      .then(() => (round === this.round ? utter(text, voice, (stop) => (this.stop = stop)) : null))
      .then(() => {
        if (round !== this.round) return;
        this.waiting -= 1;
        if (!this.waiting) this.idle();
      });
  }

  // Silence, at once, also of what is still to come of the answer.
  hush() {
    this.silenced = this.turn;
    this.round += 1;
    this.waiting = 0;
    this.stop?.();
    this.stop = null;
    this.queue = Promise.resolve();
  }
}

// The voice that was chosen; where the browser has none of its own, one of the server's.
async function utter(text, voice, stoppable) {
  if (voice) return fromServer(text, voice, stoppable);
  const voices = await browserVoices();
  if (voices.length) return fromBrowser(text, voices, stoppable);
  const spare = window.qwenAudio.voices[0];
  return spare ? fromServer(text, spare, stoppable) : null;
}

async function browserVoices() {
  const synthesis = window.speechSynthesis;
  if (!synthesis) return [];
  if (!synthesis.getVoices().length) {
    await new Promise((done) => {
      synthesis.addEventListener("voiceschanged", done, { once: true });
      setTimeout(done, 500);
    });
  }
  // voices that need a server of the browser's maker are left alone: what is said here stays here
  return synthesis.getVoices().filter((voice) => voice.localService);
}

function fromBrowser(text, voices, stoppable) {
  return new Promise((done) => {
    const utterance = new SpeechSynthesisUtterance(text);
    utterance.lang = /[\u4e00-\u9fff]/.test(text) ? "zh-CN" : "en-US";
    utterance.voice = voices.find((voice) => voice.lang.startsWith(utterance.lang.slice(0, 2))) || voices[0];
    utterance.onend = utterance.onerror = () => done();
    stoppable(() => {
      speechSynthesis.cancel();
      done();
    });
    speechSynthesis.speak(utterance);
  });
}

async function fromServer(text, voice, stoppable) {
  const ending = new AbortController();
  const player = new Audio();
  const stopped = new Promise((done) => {
    stoppable(() => {
      ending.abort();
      player.pause();
      done();
    });
    player.onended = player.onerror = done;
  });
  try {
    const answer = await fetch(new URL("page/speech", document.baseURI), {
      method: "POST",
      body: JSON.stringify({ text, voice }),
      headers: { "Content-Type": "application/json" },
      signal: ending.signal,
    });
    if (!answer.ok) return;
    player.src = URL.createObjectURL(await answer.blob());
    await player.play();
    await stopped;
  } catch {
    // a voice that fails leaves the written answer
  } finally {
    if (player.src) URL.revokeObjectURL(player.src);
  }
}
