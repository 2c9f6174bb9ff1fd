// The third view: a rollout among the members of its group, token by token.

// [name, what it is, value of a token, whether it has two sides]
const MEASURES = [
  ["weight", "w of the distillation part; 1 on the mean", (row, at) => row.weight?.[at], false],
  ["divergence", "between student and teacher, nats", (row, at) => row.divergence?.[at], false],
  ["teacher entropy", "nats", (row, at) => row.teacher_entropy?.[at], false],
  ["gap", "teacher's log-prob less the student's: blue where the teacher likes the token more", (row, at) => less(row.teacher_log_prob, row.log_prob, at), true],
  ["surprise", "minus the student's log-prob", (row, at) => less(null, row.log_prob, at), false],
  ["sampler gap", "student's log-prob less the rollout engine's", (row, at) => less(row.log_prob, row.sampler_log_prob, at), true],
];
const NUMBERS = [
  ["student", "log_prob"], ["sampler", "sampler_log_prob"], ["teacher", "teacher_log_prob"], ["teacher entropy", "teacher_entropy"],
  ["weight", "weight"], ["divergence", "divergence"], ["advantage", "advantage"],
];

function less(first, second, at) {
  if (!second || first === undefined) return undefined;
  const [left, right] = [first === null ? 0 : first[at], second[at]];
  return typeof left === "number" && typeof right === "number" ? left - right : undefined;
}

class RolloutView {
  constructor(overview) {
    this.overview = overview;
    this.measure = 0;
    this.token = null; // of the member in the middle of attention, chosen by the arrow keys
    this.pointed = null; // the token under the mouse
    document.addEventListener("mousemove", (event) => {
      // a browser also tells of a mouse that rests while the page moves under it: that is no pointing
      if (event.movementX || event.movementY) this.point(event.target);
    });
    document.addEventListener("wheel", () => this.hideTip(), { passive: true });
  }

  /** Show a rollout of the overview. */
  async show(one) {
    const { block: blockOf, group } = this.overview.rollouts;
    const head = this.overview.blocks[blockOf[one]];
    const data = await block(blockOf[one]);
    this.one = one;
    this.token = null;
    this.words = data.words;
    this.members = data.rows.map((row, place) => ({ row, one: head.first + place })).filter((member) => group[member.one] === group[one]);
    this.draw(head);
  }

  get current() {
    return this.members.find((member) => member.one === this.one);
  }

  draw(head = this.overview.blocks[this.overview.rollouts.block[this.one]]) {
    const of = (name) => this.overview.rollouts[name][this.one];
    const run = this.overview.runs[head.run], { row } = this.current;
    const title = `${run.name}, step ${head.step}, ${head.split}, group ${of("group")}${of("index") === null ? "" : `, prompt ${of("index")} of the data`}`;
    const buttons = MEASURES.map(([name, about], number) =>
      element("button", { type: "button", title: `${about} (${number + 1})`, "aria-pressed": String(number === this.measure), onclick: () => this.colour(number) }, name));
    this.most = this.largest();
    const parts = [
      element("h2", {}, visible(title)),
      element("div", { class: "text", id: "prompt" }, visible(this.overview.prompts[of("prompt")])),
      element("div", { class: "bar" }, "tokens by", ...buttons, this.scale(), element("span", { class: "dim" }, MEASURES[this.measure][1])),
      element("div", { id: "members" }, ...this.members.map((member) => this.member(member))),
    ];
    if (row.teacher_prompt !== undefined) {
      const cut = row.shortened ? ", its demonstration cut to fit" : "";
      parts.push(element("h3", {}, `What the self-teacher saw for rollout ${of("session")}${cut}`));
      parts.push(element("div", { class: "text", id: "teacher-prompt" }, visible(row.teacher_prompt)));
    }
    if (row.sibling !== undefined) {
      const sibling = this.members.find((member) => this.overview.rollouts.session[member.one] === row.sibling);
      const text = sibling ? this.overview.rollouts.response[sibling.one] : "(not among the samples)";
      parts.push(element("h3", {}, `The demonstration: rollout ${row.sibling}`), element("div", { class: "text", id: "demonstration" }, visible(text)));
    }
    byId("rollout").replaceChildren(...parts);
    byId("rollout").querySelector(".member.now")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  /** The largest size of the measure in the group. */
  largest() {
    const value = MEASURES[this.measure][2];
    let most = 0;
    for (const { row } of this.members) {
      for (let at = 0; at < (row.tokens?.length ?? 0); at++) {
        const found = value(row, at);
        if (typeof found === "number") most = Math.max(most, Math.abs(found));
      }
    }
    return most;
  }

  /** The colour of a token. The text stays readable on it, dark or light. */
  shade(value) {
    if (typeof value !== "number" || !this.most) return "";
    const strength = (0.7 * Math.min(1, Math.abs(value) / this.most)).toFixed(3);
    const colour = MEASURES[this.measure][3] && value > 0 ? "52, 120, 246" : MEASURES[this.measure][3] ? "235, 64, 52" : "245, 130, 20";
    return `rgba(${colour}, ${strength})`;
  }

  scale() {
    const two = MEASURES[this.measure][3], box = element("span", { class: "scale" });
    box.style.background = `linear-gradient(to right, ${this.shade(two ? -this.most : 0) || "transparent"}, ${two ? "transparent, " : ""}${this.shade(this.most) || "transparent"})`;
    return element("span", { class: "bar" }, shown(two ? -this.most : 0), box, shown(this.most));
  }

  member({ row, one }) {
    const of = (name) => this.overview.rollouts[name][one];
    const students = this.members.filter((other) => other.row.sibling === of("session")).map((other) => this.overview.rollouts.session[other.one]);
    const title = [`rollout ${of("session")}`, of("route"), `reward ${shown(of("reward"))}`, of("length") === null ? null : `${of("length")} tokens`];
    const notes = [];
    if (row.sibling !== undefined) notes.push(`its teacher was shown rollout ${row.sibling}`);
    if (students.length) notes.push(`shown to the teacher of ${students.join(", ")}`);
    const classes = ["member", one === this.one ? "now" : "", students.length ? "shown" : ""].join(" ");
    return element("article", { class: classes, "data-one": one, onclick: () => this.select(one) },
      element("h3", {}, title.filter(Boolean).join(" \u00b7 "), " ", element("span", { class: of("correct") ? "right" : "wrong" }, of("correct") ? "right" : "wrong")),
      element("div", { class: "dim" }, notes.join("; ")),
      element("div", { class: "text" }, ...this.tokens(row, of("response"))),
      element("div", { class: "verdict" }, visible(row.verdict ?? "")));
  }

  tokens(row, response) {
    if (!row.tokens) return [visible(response)];
    const value = MEASURES[this.measure][2];
    return row.tokens.map((word, at) => {
      const text = visible(this.words[word]).replace(/\n/g, "\u21b5\n");
      const made = element("span", { class: row.counted?.[at] === false ? "token off" : "token", "data-at": at }, text);
      made.style.backgroundColor = this.shade(value(row, at));
      return made;
    });
  }

  colour(number) {
    this.measure = number;
    this.draw();
  }

  /** Turn to another member of the group. */
  select(one) {
    if (one === this.one) return;
    history.replaceState(null, "", `#rollout/${one}`);
    this.one = one;
    this.token = null;
    this.hideTip();
    this.draw();
  }

  turn(by) {
    const place = this.members.indexOf(this.current) + by;
    if (this.members[place]) this.select(this.members[place].one);
  }

  /** Move the cursor along the tokens of the member in the middle of attention. */
  move(by) {
    const tokens = [...byId("rollout").querySelectorAll(".member.now .token")];
    if (!tokens.length) return;
    this.token = this.token === null ? (by > 0 ? 0 : tokens.length - 1) : Math.max(0, Math.min(tokens.length - 1, this.token + by));
    for (const old of byId("rollout").querySelectorAll(".token.now")) old.classList.remove("now");
    tokens[this.token].classList.add("now");
    tokens[this.token].scrollIntoView({ block: "nearest" });
    this.tip(this.current, this.token, tokens[this.token]);
  }

  /** The mouse points at an element: show a token's numbers, or hide them. */
  point(target) {
    const token = target.closest?.(".token") ?? null;
    if (!token) return this.hideTip();
    if (token === this.pointed) return;
    const one = Number(token.closest(".member").dataset.one);
    this.tip(this.members.find((member) => member.one === one), Number(token.dataset.at), token);
    this.pointed = token;
  }

  /** The numbers of a token, and the words that student and teacher like best there. */
  tip({ row }, at, token) {
    const numbers = NUMBERS.filter(([, name]) => row[name]).map(([label, name]) =>
      element("tr", {}, element("td", { class: "dim" }, label), element("td", {}, shown(row[name][at]))));
    const list = (title, words, logProbs) => {
      if (!words?.[at]) return null;
      const rows = words[at].map((word, place) =>
        element("tr", {}, element("td", { class: "word" }, this.quoted(word)), element("td", {}, chance(logProbs[at][place]))));
      return element("div", {}, element("b", {}, title), element("table", { class: "words" }, ...rows));
    };
    const tip = byId("tip");
    tip.replaceChildren(
      element("div", {}, element("b", {}, this.quoted(row.tokens[at])), element("span", { class: "dim" }, ` token ${at + 1} of ${row.tokens.length}`)),
      element("div", { class: "lists" }, ...[
        element("table", { class: "numbers" }, ...numbers),
        list("student", row.student_words, row.student_word_log_probs),
        list("teacher", row.teacher_words, row.teacher_word_log_probs),
      ].filter(Boolean)));
    tip.hidden = false;
    const box = token.getBoundingClientRect();
    const left = Math.min(box.left, innerWidth - tip.offsetWidth - 12);
    const below = box.bottom + 6 + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(6, left)}px`;
    tip.style.top = `${below ? box.bottom + 6 : Math.max(6, box.top - tip.offsetHeight - 6)}px`;
  }

  quoted(word) {
    return visible(this.words[word]).replace(/\n/g, "\u21b5").replace(/ /g, "\u2423") || "(part of a character)";
  }

  hideTip() {
    this.pointed = null;
    byId("tip").hidden = true;
  }
}

/** A log-prob as a probability. */
function chance(logProb) {
  if (typeof logProb !== "number") return shown(logProb);
  const value = 100 * Math.exp(logProb);
  return `${value < 0.1 ? value.toExponential(1) : value.toFixed(1)} %`;
}
