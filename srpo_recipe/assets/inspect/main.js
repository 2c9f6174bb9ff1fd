// What ties the views together: the address after #, the keys, dark and light.

const VIEWS = ["curves", "rollouts", "rollout"];
let table, view, shownView;

async function start() {
  const overview = await unpack("overview");
  byId("notes").textContent = overview.notes.join(" ");
  view = new RolloutView(overview);
  table = new Table(overview, (one) => { location.hash = `rollout/${one}`; });
  drawComparison(overview.comparison);
  drawCurves(overview.runs, (step) => {
    table.ask({ step: String(step) });
    location.hash = "rollouts";
  });
  addEventListener("hashchange", go);
  addEventListener("keydown", key);
  byId("theme").addEventListener("click", turnTheme);
  byId("help-button").addEventListener("click", () => byId("help").showModal());
  await go();
  document.body.dataset.ready = "true";
}

/** Show what the address asks for: #curves, #rollouts or #rollout/NUMBER. */
async function go() {
  const [name, number] = location.hash.slice(1).split("/");
  const total = table.columns.block.length;
  let wanted = VIEWS.includes(name) ? name : "curves";
  if (wanted === "rollout") {
    const one = number === undefined ? (view.one ?? table.found[table.now]) : Number(number);
    if (Number.isInteger(one) && one >= 0 && one < total) await view.show(one);
    else wanted = "rollouts";
  }
  view.hideTip();
  shownView = wanted;
  for (const each of VIEWS) byId(each).hidden = each !== wanted;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === wanted) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (wanted === "rollouts") {
    table.choose(table.now, false);
    byId("table").focus();
  }
}

function turnTheme() {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
}

const KEYS = {
  c: () => { location.hash = "curves"; },
  r: () => { location.hash = "rollouts"; },
  t: turnTheme,
  "?": () => byId("help").showModal(),
  "/": () => {
    location.hash = "rollouts";
    setTimeout(() => byId("f-text").focus());
  },
};
const ROLLOUT_KEYS = {
  Escape: () => { location.hash = "rollouts"; },
  ArrowDown: () => view.turn(1),
  ArrowUp: () => view.turn(-1),
  ArrowRight: () => view.move(1),
  ArrowLeft: () => view.move(-1),
  "[": () => table.step(-1),
  "]": () => table.step(1),
  ...Object.fromEntries(MEASURES.map((_, number) => [String(number + 1), () => view.colour(number)])),
};

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  if (event.target.matches("input, select")) {
    if (event.key === "Escape") {
      event.preventDefault(); // which would empty a search field
      byId("table").focus();
    }
    return;
  }
  const action = (shownView === "rollout" ? ROLLOUT_KEYS[event.key] : undefined) ?? KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

start();
