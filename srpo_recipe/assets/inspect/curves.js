// The first view: a line a run, and its metrics against the steps.

const COLOURS = ["#2f7ed8", "#d9541e", "#2e9e4f", "#9256c9", "#b58900", "#c2387f", "#1b9e9e", "#7a7a7a"];
const HELD_OUT = /^val-core\/(.+)\/(acc|reward)\/mean@(\d+)$/;
const PANELS = [
  ["route/correct_share", "right in training"],
  ["route/distill_share", "share on the self-teacher's route"],
  ["route/teacher_available_share", "share that has a teacher"],
  ["actor/distill/teacher_entropy", "teacher entropy (nats)"],
  ["actor/distill/weight_std", "spread of the token weights"],
  ["actor/distill/divergence", "divergence (nats)"],
  ["route/response_length", "response length (tokens)"],
  ["actor/pg_loss", "loss, GRPO part"],
  ["actor/distill/loss", "loss, distillation part"],
  ["actor/grad_norm", "gradient norm"],
  ["actor/policy/clip_fraction", "share of clipped tokens"],
  ["actor/ema_distance", "distance of the teacher"],
  ["timing_s/step", "seconds a step"],
];
const WIDTH = 360, HEIGHT = 170, LEFT = 46, BOTTOM = 20, TOP = 8;

const svg = (name, attributes) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};

/** [step, value] of a run's metric where it is a number. */
function points(run, key) {
  const values = run.metrics[key] ?? [];
  return run.steps.map((step, place) => [step, values[place]]).filter(([, value]) => typeof value === "number");
}

const heldOutKeys = (runs) => [...new Set(runs.flatMap((run) => Object.keys(run.metrics).filter((key) => HELD_OUT.test(key))))].sort();

/** The table of several runs, a line for each method and setting, as `compare` gives it; nothing for other pages. */
function drawComparison(rows) {
  if (!rows) return;
  const percent = (share) => (100 * share).toFixed(1);
  const head = ["method", "seeds", "steps", "before", "best of the mean (step)", "last, mean", "95 % interval", "last by seed"];
  const body = rows.map((row) => [
    row.method, row.seeds.join(" "), row.steps, percent(row.before), `${percent(row.best)} (${row.best_step})`, percent(row.last),
    row.last_interval ? row.last_interval.map(percent).join(" to ") : "\u2013", row.last_by_seed.map(percent).join(" "),
  ]);
  byId("comparison").hidden = false;
  byId("comparison").replaceChildren(
    element("tr", {}, ...head.map((name) => element("th", {}, visible(name)))),
    ...body.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, visible(String(cell)))))),
  );
}

/** The table of the runs: held-out accuracy at the first and the last validation, with its interval. */
function drawRuns(runs) {
  const keys = heldOutKeys(runs);
  const head = ["run", "method", "seed", "steps", ...keys.flatMap((key) => {
    const [, source, , samples] = HELD_OUT.exec(key);
    return [`avg@${samples} on ${source}, before`, "after"];
  })];
  const rows = runs.map((run, number) => {
    const cells = [run.method, run.seed, run.steps.at(-1)].map((value) => element("td", {}, shown(value)));
    for (const key of keys) {
      const found = points(run, key);
      cells.push(...[found[0], found.at(-1)].map((point) => element("td", {}, point ? accuracy(run, key, point) : "\u2013")));
    }
    const swatch = element("span", { class: "swatch" });
    swatch.style.background = COLOURS[number % COLOURS.length];
    return element("tr", {}, element("td", { title: run.folder }, swatch, visible(run.name)), ...cells);
  });
  byId("runs").replaceChildren(element("tr", {}, ...head.map((name) => element("th", {}, visible(name)))), ...rows);
}

/** "51.2 % [46.0, 56.3]": the interval is of the questions, as the run wrote it. */
function accuracy(run, key, [step, value]) {
  const place = run.steps.indexOf(step);
  const ends = ["low", "high"].map((end) => run.metrics[`${key.replace("val-core/", "val-aux/")}/${end}`]?.[place]);
  const percent = (share) => (100 * share).toFixed(1);
  const interval = ends.every((end) => typeof end === "number") ? ` [${ends.map(percent).join(", ")}]` : "";
  return `${percent(value)} %${interval}`;
}

/** One figure: a metric of all runs against the steps. chosen(step) is called with the step that is clicked. */
function panel(runs, key, title, chosen) {
  const curves = runs.map((run) => points(run, key));
  const all = curves.flat();
  if (!all.length) return null;
  const steps = all.map(([step]) => step), values = all.map(([, value]) => value);
  const first = Math.min(...steps), last = Math.max(...steps, first + 1);
  const low = Math.min(0, ...values), high = Math.max(...values, low + 1e-9);
  const x = (step) => LEFT + (step - first) / (last - first) * (WIDTH - LEFT - 8);
  const y = (value) => HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - BOTTOM - TOP);
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title });
  for (const [value, anchor] of [[low, "end"], [(low + high) / 2, "end"], [high, "end"]]) {
    picture.append(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - 8, y1: y(value), y2: y(value) }));
    const label = svg("text", { x: LEFT - 4, y: y(value) + 4, "text-anchor": anchor });
    label.textContent = Number(value.toPrecision(3));
    picture.append(label);
  }
  for (const [step, anchor] of [[first, "start"], [last, "end"]]) {
    const label = svg("text", { x: x(step), y: HEIGHT - 5, "text-anchor": anchor });
    label.textContent = step;
    picture.append(label);
  }
  curves.forEach((curve, number) => {
    const colour = COLOURS[number % COLOURS.length];
    picture.append(svg("polyline", { class: "curve", stroke: colour, points: curve.map(([step, value]) => `${x(step)},${y(value)}`).join(" ") }));
    if (curve.length < 30) for (const [step, value] of curve) picture.append(svg("circle", { cx: x(step), cy: y(value), r: 2.5, fill: colour }));
  });
  const cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, x1: -9, x2: -9 });
  picture.append(cursor);
  const read = element("span", { class: "dim" });
  const nearest = (event) => {
    const box = picture.getBoundingClientRect();
    const step = first + ((event.clientX - box.left) / box.width * WIDTH - LEFT) / (WIDTH - LEFT - 8) * (last - first);
    return steps.reduce((best, one) => (Math.abs(one - step) < Math.abs(best - step) ? one : best));
  };
  picture.addEventListener("mousemove", (event) => {
    const step = nearest(event);
    cursor.setAttribute("x1", x(step));
    cursor.setAttribute("x2", x(step));
    const found = curves.map((curve) => curve.find(([one]) => one === step)?.[1]);
    read.textContent = `step ${step}: ${found.map(shown).join(", ")}`;
  });
  picture.addEventListener("click", (event) => chosen(nearest(event)));
  return element("figure", { class: "panel", title: key }, element("figcaption", {}, element("b", {}, visible(title)), read), picture);
}

function drawCurves(runs, chosen) {
  drawRuns(runs);
  const heldOut = heldOutKeys(runs).map((key) => [key, `held out: ${HELD_OUT.exec(key)[1]}`]);
  const panels = [...heldOut, ...PANELS].map(([key, title]) => panel(runs, key, title, chosen));
  byId("panels").replaceChildren(...panels.filter(Boolean));
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.metrics)))].sort();
  byId("more").replaceChildren(element("option", { value: "" }, "\u2026"), ...keys.map((key) => element("option", { value: key }, visible(key))));
  byId("more").addEventListener("change", (event) => {
    const made = event.target.value && panel(runs, event.target.value, event.target.value, chosen);
    if (made) byId("panels").prepend(made);
  });
}
