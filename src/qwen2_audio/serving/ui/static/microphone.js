// The visitor's microphone, and in plain words why it cannot be had.

export class MicrophoneError extends Error {
  constructor(key) {
    super(key);
    this.key = key;
  }
}

const REASONS = {
  NotAllowedError: "microphone.denied",
  SecurityError: "microphone.denied",
  NotFoundError: "microphone.missing",
  OverconstrainedError: "microphone.missing",
  NotReadableError: "microphone.busy",
  AbortError: "microphone.busy",
};

// Opens the microphone; `hear` is called with every block of samples (Float32Array, -1 to 1). Gives {rate, close}.
export async function openMicrophone(hear) {
  if (!window.isSecureContext) throw new MicrophoneError("microphone.insecure");
  if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorkletNode) {
    throw new MicrophoneError("microphone.unsupported");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true },
    });
  } catch (error) {
    throw new MicrophoneError(REASONS[error.name] || "microphone.missing");
  }
  const context = new AudioContext();
  try {
    await context.audioWorklet.addModule(new URL("recorder.js", import.meta.url));
    await context.resume();
  } catch {
    for (const track of stream.getTracks()) track.stop();
    await context.close();
    throw new MicrophoneError("microphone.unsupported");
  }
  const node = new AudioWorkletNode(context, "recorder", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
  node.port.onmessage = (event) => hear(event.data);
  const source = context.createMediaStreamSource(stream);
  source.connect(node);
  return {
    rate: context.sampleRate,
    close() {
      node.port.onmessage = null;
      source.disconnect();
      for (const track of stream.getTracks()) track.stop();
      context.close();
    },
  };
}

// 0 to 1, as loud as it sounds
export function levelOf(block) {
  let sum = 0;
  for (const value of block) sum += value * value;
  const decibels = 10 * Math.log10(sum / block.length + 1e-10);
  return Math.min(1, Math.max(0, (decibels + 60) / 55));
}

// Blocks of samples as a WAV file: 16-bit PCM, one channel.
export function wavOf(blocks, rate) {
  const count = blocks.reduce((sum, block) => sum + block.length, 0);
  const view = new DataView(new ArrayBuffer(44 + 2 * count));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * count, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * count, true);
  let at = 44;
  for (const block of blocks) {
    for (const value of block) {
      view.setInt16(at, Math.max(-1, Math.min(1, value)) * 32767, true);
      at += 2;
    }
  }
  return new Blob([view], { type: "audio/wav" });
}

// Leaves a recording with the server; gives the name by which the page can refer to it.
export async function leave(wav) {
  const page = window.qwenAudio;
  const answer = await fetch(new URL("page/recordings", document.baseURI), {
    method: "POST",
    body: wav,
    headers: { "Content-Type": "audio/wav", "Accept-Language": page.language },
  });
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(told.error?.message || told.error || answer.statusText);
  return told.token;
}
