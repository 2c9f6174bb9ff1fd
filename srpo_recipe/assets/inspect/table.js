// The second view: all rollouts, filtered; only the rows that can be seen are in the page.

const ROW = 26; // pixels, as in page.css
const FILTERS = ["text", "run", "step", "split", "route", "correct", "length", "prompt"];

class Table {
  /** open(rollout) is called with the number of the rollout that is chosen. */
  constructor(overview, open) {
    this.overview = overview;
    this.columns = overview.rollouts;
    this.open = open;
    this.found = [];
    this.now = 0; // place among the found ones
    this.lower = null;
    const several = overview.runs.length > 1;
    byId("rollouts").classList.toggle("single", !several);
    const head = ["run", "step", "of", "rollout", "prompt", "route", "answer", "reward", "tokens", "response"];
    byId("table-head").append(...head.map((name) => element("span", { role: "columnheader" }, name)));
    this.fill("f-run", overview.runs.map((run, number) => [number, run.name]));
    this.fill("f-route", [...new Set(this.columns.route)].filter(Boolean).sort().map((route) => [route, route]));
    byId("f-run").parentElement.hidden = !several;
    for (const kind of ["input", "change"]) byId("filters").addEventListener(kind, () => this.filter());
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    byId("f-clear").addEventListener("click", () => this.ask({}));
    byId("table").addEventListener("scroll", () => this.draw());
    byId("table").addEventListener("keydown", (event) => this.key(event));
    byId("rows").addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) this.choose(Number(row.dataset.place), true);
    });
    new ResizeObserver(() => this.draw()).observe(byId("table"));
    this.filter();
  }

  fill(id, options) {
    const all = options.map(([value, name]) => element("option", { value }, visible(String(name))));
    byId(id).replaceChildren(element("option", { value: "" }, "all"), ...all);
  }

  /** Set the filters to these values, by name, and all others to nothing. */
  ask(values) {
    for (const name of FILTERS) byId(`f-${name}`).value = values[name] ?? "";
    this.filter();
  }

  /** The texts to search in, in small letters: made once, when they are first needed. */
  texts() {
    const prompts = this.overview.prompts.map((text) => text.toLowerCase());
    this.lower ??= { prompts, responses: this.columns.response.map((text) => text.toLowerCase()) };
    return this.lower;
  }

  filter() {
    const values = Object.fromEntries(FILTERS.map((name) => [name, byId(`f-${name}`).value]));
    if (JSON.stringify(values) === this.asked) return; // a field that is left says so again, in the middle of a click on a row
    this.asked = JSON.stringify(values);
    const asked = (name) => values[name];
    const { block, prompt, route, correct, length } = this.columns;
    const blocksOf = this.overview.blocks;
    const within = (text, value) => {
      const range = bounds(text);
      return !text.trim() || (range !== null && value !== null && range[0] <= value && value <= range[1]);
    };
    const text = asked("text").toLowerCase(), promptText = asked("prompt").toLowerCase();
    const texts = text || promptText ? this.texts() : null;
    this.found = [];
    for (let one = 0; one < block.length; one++) {
      const head = blocksOf[block[one]];
      if (asked("run") && Number(asked("run")) !== head.run) continue;
      if (asked("split") && asked("split") !== head.split) continue;
      if (asked("route") && asked("route") !== route[one]) continue;
      if (asked("correct") && asked("correct") !== String(correct[one])) continue;
      if (!within(asked("step"), head.step) || !within(asked("length"), length[one])) continue;
      if (promptText && !texts.prompts[prompt[one]].includes(promptText)) continue;
      if (text && !texts.prompts[prompt[one]].includes(text) && !texts.responses[one].includes(text)) continue;
      this.found.push(one);
    }
    this.now = Math.max(0, Math.min(this.now, this.found.length - 1));
    const what = block.length ? `${this.found.length} of ${block.length} rollouts` : "These runs kept no samples (run.samples).";
    byId("count").textContent = what;
    byId("space").style.height = `${this.found.length * ROW}px`;
    byId("table").scrollTop = 0;
    this.draw();
  }

  draw() {
    const box = byId("table");
    const first = Math.max(0, Math.floor(box.scrollTop / ROW) - 5);
    const last = Math.min(this.found.length, Math.ceil((box.scrollTop + box.clientHeight) / ROW) + 5);
    byId("rows").style.top = `${first * ROW}px`;
    const places = Array.from({ length: Math.max(0, last - first) }, (_, offset) => first + offset);
    byId("rows").replaceChildren(...places.map((place) => this.row(place)));
  }

  row(place) {
    const one = this.found[place], of = (name) => this.columns[name][one];
    const head = this.overview.blocks[of("block")];
    const right = of("correct");
    const cells = [
      visible(this.overview.runs[head.run].name),
      head.step,
      head.split,
      `${of("group")}.${of("session")}`,
      excerpt(this.overview.prompts[of("prompt")]),
      of("route") ?? "\u2013",
      element("span", { class: right ? "right" : "wrong" }, right ? "right" : "wrong"),
      shown(of("reward")),
      shown(of("length")),
      excerpt(of("response")),
    ];
    const made = cells.map((cell) => (cell instanceof Node ? cell : element("span", {}, String(cell))));
    return element("div", { class: "row", role: "row", "data-place": place, "aria-selected": String(place === this.now) }, ...made);
  }

  /** Make a place the chosen one, bring it into sight, and open it if that is asked for. */
  choose(place, open) {
    if (!this.found.length) return;
    this.now = Math.max(0, Math.min(place, this.found.length - 1));
    const box = byId("table");
    if (this.now * ROW < box.scrollTop) box.scrollTop = this.now * ROW;
    if ((this.now + 1) * ROW > box.scrollTop + box.clientHeight) box.scrollTop = (this.now + 1) * ROW - box.clientHeight;
    this.draw();
    if (open) this.open(this.found[this.now]);
  }

  /** The rollout so many places after the chosen one, opened. */
  step(by) {
    this.choose(this.now + by, true);
  }

  key(event) {
    const page = Math.max(1, Math.floor(byId("table").clientHeight / ROW) - 1);
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key === "Enter") this.choose(this.now, true);
    else if (event.key in moves) this.choose(this.now + moves[event.key], false);
    else return;
    event.preventDefault();
  }
}
