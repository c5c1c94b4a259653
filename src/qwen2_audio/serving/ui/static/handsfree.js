// Hands-free talk over /v1/realtime: the server notices when somebody speaks, answers in writing, the page reads it aloud.
import { Reader } from "./aloud.js";
import { leave, openMicrophone, wavOf } from "./microphone.js";

const RATE = 24_000; // what the protocol wants
const REMEMBERED_SECONDS = 90; // of what was sent, so that a turn can be cut out of it

export class HandsFree {
  // `on`: show(state, textKey), level(block), heard({token, answer, stopped, problem}), ended(error or null)
  constructor(bar, on) {
    this.on = on;
    this.live = bar.querySelector(".qa-live");
    this.sent = new Sent();
    this.reader = new Reader();
    this.reader.idle = () => this.settle();
    this.turn = null;
    this.told = Promise.resolve(); // turns are told one after the other, as they were spoken
    this.open();
  }

  async open() {
    this.on.show("connecting", "talk.connecting");
    try {
      this.microphone = await openMicrophone((block) => this.hear(block));
      if (this.closed) return this.microphone.close();
      this.resampler = new Resampler(this.microphone.rate, RATE);
    } catch (error) {
      return this.close(error);
    }
    const url = new URL("v1/realtime", new URL(window.qwenAudio.service, document.baseURI));
    url.protocol = url.protocol.replace("http", "ws");
    if (window.qwenAudio.wishes.model) url.searchParams.set("model", window.qwenAudio.wishes.model);
    this.socket = new WebSocket(url);
    this.socket.onmessage = (event) => this.take(JSON.parse(event.data));
    this.socket.onclose = () => this.close(new Error(window.qwenAudio.say("talk.lost")));
  }

  tell(event) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(event));
  }

  hear(block) {
    this.on.level(block);
    if (!this.ready) return;
    const samples = this.resampler.push(block);
    this.sent.push(samples, this.hearing);
    this.tell({ type: "input_audio_buffer.append", audio: base64(samples) });
  }

  take(event) {
    const step = STEPS[event.type];
    if (step) step(this, event);
  }

  // Back to listening once the answer is written and read.
  settle() {
    if (!this.closed && !this.turn?.writing && !this.hearing) this.on.show("listening", "talk.listening");
  }

  finish(stopped, problem = "") {
    const turn = this.turn;
    this.turn = null;
    this.live.hidden = true;
    if (turn) this.told = this.told.then(() => this.report(turn, stopped, problem));
  }

  async report({ wav, answer }, stopped, problem) {
    if (this.forgotten) return;
    const token = await leave(wav).catch(() => null);
    if (!this.forgotten) this.on.heard({ token, answer, stopped, problem });
  }

  hush() {
    this.reader.hush();
    this.settle();
  }

  // End, and leave nothing of what is being said.
  forget() {
    this.turn = null;
    this.forgotten = true;
    this.close();
  }

  close(error = null) {
    if (this.closed) return;
    this.closed = true;
    this.microphone?.close();
    if (this.socket) {
      this.socket.onclose = null;
      this.socket.close();
    }
    this.reader.hush();
    if (this.turn?.answer) this.finish(true);
    this.live.hidden = true;
    this.on.ended(error);
  }
}

const STEPS = {
  "session.created": (talk) => {
    const wishes = window.qwenAudio.wishes;
    talk.tell({
      type: "session.update",
      session: {
        type: "realtime",
        output_modalities: ["text"],
        max_output_tokens: wishes.length,
        ...(wishes.temperature === "" ? {} : { temperature: wishes.temperature }),
        ...(wishes.system ? { instructions: wishes.system } : {}),
        audio: {
          input: {
            format: { type: "audio/pcm", rate: RATE },
            turn_detection: { type: "server_vad", create_response: true, interrupt_response: true },
          },
        },
      },
    });
    talk.ready = true;
    talk.on.show("listening", "talk.listening");
  },
  "input_audio_buffer.speech_started": (talk, event) => {
    talk.hearing = true;
    talk.started = event.audio_start_ms;
    talk.reader.hush();
    if (talk.turn) talk.finish(true);
    talk.on.show("hearing", "talk.hearing");
  },
  "input_audio_buffer.speech_stopped": (talk, event) => {
    talk.hearing = false;
    const wav = wavOf([talk.sent.cut(talk.started, event.audio_end_ms)], RATE);
    talk.turn = { answer: "", writing: true, id: `${event.item_id}`, wav };
    talk.on.show("thinking", "talk.thinking");
  },
  "response.output_text.delta": (talk, event) => {
    if (!talk.turn) return;
    talk.turn.answer += event.delta;
    talk.live.hidden = false;
    talk.live.textContent = talk.turn.answer;
    talk.live.scrollTop = talk.live.scrollHeight;
    talk.on.show("speaking", "talk.speaking");
    talk.reader.follow({ turn: talk.turn.id, text: talk.turn.answer, done: false, voice: window.qwenAudio.voice });
  },
  "response.done": (talk, event) => {
    const turn = talk.turn;
    if (!turn) return;
    turn.writing = false;
    const whole = event.response.status === "completed" || event.response.status === "incomplete";
    const failed = event.response.status === "failed";
    if (whole) talk.reader.follow({ turn: turn.id, text: turn.answer, done: true, voice: window.qwenAudio.voice });
    talk.finish(!whole, failed ? event.response.status_details.error.message : "");
    if (failed) talk.on.show("problem", "talk.failed");
    else if (!talk.reader.busy) talk.settle();
  },
  error: (talk, event) => talk.close(new Error(event.error.message)),
};

// What was sent lately, as one stretch of time.
class Sent {
  constructor() {
    this.blocks = [];
    this.dropped = 0;
    this.count = 0;
  }

  // `keep`: somebody is speaking, however long; all of it will be wanted.
  push(samples, keep) {
    this.blocks.push(samples);
    this.count += samples.length;
    while (!keep && this.count - this.dropped > REMEMBERED_SECONDS * RATE) this.dropped += this.blocks.shift().length;
  }

  cut(startMs, endMs) {
    const start = Math.max(0, Math.round((startMs * RATE) / 1000) - this.dropped);
    const end = Math.round((endMs * RATE) / 1000) - this.dropped;
    const whole = new Float32Array(this.count - this.dropped);
    let at = 0;
    for (const block of this.blocks) {
      whole.set(block, at);
      at += block.length;
    }
    return whole.slice(start, Math.max(end, start));
  }
}

// From the microphone's rate to another: averages what falls into a step, or draws lines where steps are shorter.
export class Resampler {
  constructor(from, to) {
    this.step = from / to;
    this.at = 0; // where the next sample begins, counted from the start of `left`
    this.left = new Float32Array(0);
  }

  push(block) {
    const all = new Float32Array(this.left.length + block.length);
    all.set(this.left);
    all.set(block, this.left.length);
    const width = Math.max(1, Math.round(this.step));
    const out = [];
    for (; Math.ceil(this.at) + width < all.length; this.at += this.step) {
      const first = Math.floor(this.at);
      const share = this.at - first;
      let sum = 0;
      for (let i = 0; i < width; i++) sum += all[first + i] * (1 - share) + all[first + i + 1] * share;
      out.push(sum / width);
    }
    const done = Math.floor(this.at);
    this.left = all.slice(done);
    this.at -= done;
    return Float32Array.from(out);
  }
}

function base64(samples) {
  const bytes = new Uint8Array(samples.length * 2);
  const view = new DataView(bytes.buffer);
  samples.forEach((value, i) => view.setInt16(2 * i, Math.max(-1, Math.min(1, value)) * 32767, true));
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}
