// The transcript as it grows: a line a segment, each of which can be corrected; files are made of what stands there.
export function mount(element, props, watch) {
  const transcript = new Transcript(element, props);
  watch("value", () => transcript.draw());
}

class Transcript {
  constructor(element, props) {
    this.element = element;
    this.props = props;
    this.name = null;
    element.addEventListener("click", (event) => {
      const button = event.target.closest("[data-format]");
      if (button) this.ask(button.dataset.format);
    });
    document.addEventListener("qwen-language", () => this.draw());
  }

  draw() {
    const told = this.props.value && JSON.parse(this.props.value);
    const whole = this.element.querySelector(".qa-transcript");
    if (!whole) return;
    whole.hidden = !told || !told.segments.length;
    const list = whole.querySelector(".qa-segments");
    if (!told || told.name !== this.name) list.replaceChildren();
    this.told = told;
    this.name = told?.name;
    if (!told) return;
    for (let i = list.children.length; i < told.segments.length; i++) list.append(line(told.segments[i]));
    for (const area of list.querySelectorAll("textarea")) area.setAttribute("aria-label", window.qwenAudio.say("transcribe.words"));
  }

  ask(format) {
    const areas = this.element.querySelectorAll(".qa-segments textarea");
    const segments = this.told.segments.map((segment, i) => ({ ...segment, text: areas[i].value }));
    const detail = { format, segments, name: this.told.title, duration: this.told.duration };
    this.element.dispatchEvent(new CustomEvent("download", { detail }));
  }
}

function line({ start, end, text }) {
  const item = document.createElement("li");
  const time = document.createElement("time");
  time.textContent = `${clock(start)} – ${clock(end)}`;
  const area = document.createElement("textarea");
  area.rows = 1;
  area.value = text;
  item.append(time, area);
  return item;
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  const two = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  return `${hours ? `${hours}:` : ""}${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}
