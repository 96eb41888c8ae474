// The live page: polls api/stats, follows api/decisions, and keeps two minutes of history here.
// Kinds and reasons are anybody's strings: they are only ever set as text.

const POLL_MS = 1000;
const PATIENCE_MS = 5000; // for one answer
const CONFIG_MS = 5000; // somebody else may change settings
const HISTORY_S = 120;
const ROWS = 30; // of the latest decisions
const REASONS = 12; // of the drops
const STRATEGIES = ["inline", "spawn", "cpu_pool", "batch", "drop"];
const CHOICES = { parallel_kernels: ['"auto"', '"never"'] };
const STATES = {
  new: "not opened yet",
  opening: "opening: compiles its kernels",
  open: "",
  closing: "takes no more jobs, finishes those in flight",
  closed: "takes no jobs; these are its last numbers",
  crashed: "takes no jobs; the server's log says why",
};

const $ = (selector) => document.querySelector(selector);
const $$ = (selector) => document.querySelectorAll(selector);

// -- Making elements ------------------------------------------------------------------------

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function make(tag, { text, data = {}, ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  Object.assign(element.dataset, data);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

function draw(tag, { text, ...attributes } = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

function named(strategy) {
  const swatch = make("span", { class: "swatch", "aria-hidden": "true" });
  return make("span", { class: "name", data: { strategy } }, swatch, make("span", { text: strategy }));
}

// -- Numbers as text ------------------------------------------------------------------------

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const three = new Intl.NumberFormat("en", {
  minimumSignificantDigits: 3,
  maximumSignificantDigits: 3,
  useGrouping: false,
});

function time(us) {
  const shown = Number(us.toPrecision(3)); // 999.7 us are 1 ms
  if (shown === 0) return "0 ms";
  if (shown < 1e3) return `${three.format(us)} µs`;
  if (shown < 1e6) return `${three.format(us / 1e3)} ms`;
  return us < 1e9 ? `${three.format(us / 1e6)} s` : `${whole.format(us / 1e6)} s`;
}

const FORMATS = {
  count: (value) => whole.format(value),
  ms: (value) => time(value * 1e3),
  us: (value) => time(value),
  number: (value) => value.toFixed(2),
  text: (value) => value,
};

const rated = (rate) => (rate > 0 && rate < 9.95 ? rate.toFixed(1) : whole.format(rate));

function share(part, of) {
  if (!of) return "";
  const percent = (100 * part) / of;
  // Neither "0.0" of what there is, nor "100.0" of what isn't all.
  if (part > 0 && percent < 0.1) return "< 0.1 %";
  if (part < of && percent > 99.9) return "> 99.9 %";
  return part === 0 || part === of ? `${percent} %` : `${percent.toFixed(1)} %`;
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

// -- What is known --------------------------------------------------------------------------

const known = {
  state: "connecting",
  stats: null,
  statsAt: 0, // by performance.now()
  statsDate: null,
  config: null, // setting → its value in JSON
  editable: false,
};

/** Rates between one reading and the next: {from, to, rates}, in seconds of the router's clock. */
let history = [];

function learn(stats) {
  const before = known.stats;
  if (before !== null) {
    const span = stats.time_s - before.time_s;
    if (span === 0) return; // the same answer once more
    const counts = STRATEGIES.map((name) => stats.by_strategy[name].routed);
    const grown = counts.map((count, i) => count - before.by_strategy[STRATEGIES[i]].routed);
    if (span < 0) history = [];
    if (span < 0 || stats.submitted < before.submitted || grown.some((more) => more < 0)) {
      nextNumber = null; // another router: what it did before this reading isn't known
    } else {
      history.push({ from: before.time_s, to: stats.time_s, rates: grown.map((more) => more / span) });
    }
    history = history.filter((each) => each.to > stats.time_s - HISTORY_S);
  }
  known.stats = stats;
}

// -- Asking ---------------------------------------------------------------------------------

async function ask(path, options = {}) {
  const answer = await fetch(path, {
    cache: "no-store",
    signal: AbortSignal.timeout(PATIENCE_MS),
    ...options,
  });
  const text = await answer.text();
  if (!answer.ok) {
    let why = `HTTP ${answer.status}`;
    try {
      why = JSON.parse(text).error ?? why;
    } catch {
      // not an answer of this application
    }
    throw Object.assign(new Error(why), { status: answer.status });
  }
  return text;
}

let polling = false;
let timer = 0;

async function poll() {
  if (polling) return;
  polling = true;
  clearTimeout(timer);
  const began = performance.now();
  try {
    let stats;
    try {
      stats = JSON.parse(await ask("api/stats"));
    } catch (error) {
      known.state = "unreachable";
      showState(whatIsWrong(error));
      return;
    }
    learn(stats);
    known.state = stats.state;
    known.statsAt = performance.now();
    known.statsDate = new Date();
    showStats(stats);
    showState("");
    follow();
    if (began - configAt > CONFIG_MS) void readConfig();
  } finally {
    polling = false;
    timer = setTimeout(poll, Math.max(0, POLL_MS - (performance.now() - began)));
  }
}

function whatIsWrong(error) {
  if (error.status !== undefined) return `the server answers ${error.message}`;
  if (error.name === "TimeoutError") return `no answer for ${PATIENCE_MS / 1000} s`;
  if (error instanceof SyntaxError) return "something else answers";
  return "connection lost";
}

function showState(why) {
  const { state, statsDate } = known;
  const lost = state === "unreachable";
  let detail = STATES[state] ?? "";
  if (lost) {
    const since =
      statsDate === null ? "" : ` The numbers are those of ${clock.format(statsDate)}.`;
    detail = `${why}; trying again every second.${since}`;
  }
  $("#state").dataset.state = state;
  put($("#state-word"), state);
  put($("#state-detail"), detail); // the same text again isn't announced again
  $("#panels").classList.toggle("stale", lost);
  document.title = state === "open" ? "helixnb" : `${state} – helixnb`;
}

// -- Numbers --------------------------------------------------------------------------------

function showStats(stats) {
  for (const element of $$("[data-stat]:not([data-reason])")) {
    const value = element.dataset.stat.split(".").reduce((part, name) => part[name], stats);
    element.dataset.value = JSON.stringify(value);
    put(element, value === null ? "–" : FORMATS[element.dataset.format ?? "count"](value));
    element.classList.toggle("none", value === null);
  }
  for (const element of $$("[data-share]")) {
    const [part, of] = element.dataset.share.split("/");
    const text = share(stats[part], stats[of]);
    put(element, text && `${text} of ${of}`);
  }
  const latest = history.at(-1);
  const rate = latest?.to === stats.time_s ? sum(latest.rates) : null;
  put($("[data-derived=rate]"), rate === null ? "–" : rated(rate));
  const size = stats.batches ? (stats.batched_jobs / stats.batches).toFixed(1) : "–";
  put($("[data-derived=batch_size]"), size);
  $("#shadow").hidden = stats.shadow_compared === 0;
  showGauge("backlog", stats.waiting, stats.queue_capacity);
  showGauge("slots", stats.cpu_busy, stats.cpu_parallelism);
  showLag();
  showDrops(stats.dropped_by_reason);
  showSpread(stats.by_strategy);
  showRates();
  document.body.dataset.timeS = stats.time_s; // which reading all of this is
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

function showGauge(name, value, bound, text = `${value} of ${bound}`) {
  const track = $(`[data-gauge=${name}]`);
  track.setAttribute("aria-valuemin", 0);
  track.setAttribute("aria-valuemax", bound);
  track.setAttribute("aria-valuenow", Math.min(value, bound));
  track.setAttribute("aria-valuetext", text);
  track.firstElementChild.style.width = `${Math.min(100, (100 * value) / bound)}%`;
  track.classList.toggle("full", value >= bound && name !== "slots"); // busy slots are no trouble
}

function showLag() {
  if (known.stats === null || known.config === null) return;
  const bound = Number(known.config.max_loop_lag_ms);
  const lag = known.stats.loop_lag_ms;
  const shown = $("[data-config=max_loop_lag_ms]");
  shown.dataset.value = known.config.max_loop_lag_ms;
  put(shown, `${bound} ms`);
  showGauge("lag", lag, bound, `${FORMATS.ms(lag)} of ${bound} ms`);
}

function showDrops(reasons) {
  const ordered = Object.entries(reasons).sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1));
  const rows = ordered.slice(0, REASONS);
  const rest = ordered.slice(REASONS);
  const all = sum(ordered.map(([, count]) => count));
  const most = rows[0]?.[1] ?? 1;
  const list = $("#drops");
  while (list.childElementCount > rows.length) list.lastElementChild.remove();
  while (list.childElementCount < rows.length) {
    list.append(
      make(
        "li",
        {},
        make("span", { class: "reason" }),
        make("b", {}, make("span", { data: { stat: "dropped_by_reason" } }), " ", make("small")),
        make("div", { class: "track", "aria-hidden": "true" }, make("i")),
      ),
    );
  }
  rows.forEach(([reason, count], i) => {
    const row = list.children[i];
    const [name, number, track] = row.children;
    put(name, reason);
    name.title = reason;
    const value = number.firstElementChild;
    value.dataset.reason = reason;
    value.dataset.value = count;
    put(value, FORMATS.count(count));
    put(number.lastElementChild, share(count, all));
    track.firstElementChild.style.width = `${(100 * count) / most}%`;
  });
  const note = $("#no-drops");
  note.hidden = ordered.length > 0 && rest.length === 0;
  put(
    note,
    rest.length
      ? `${whole.format(rest.length)} more reasons: ${whole.format(sum(rest.map(([, n]) => n)))}`
      : "No job was dropped.",
  );
}

// -- Latency on a logarithmic scale ---------------------------------------------------------

function showSpread(byStrategy) {
  const known = STRATEGIES.map((name) => byStrategy[name].latency).filter((each) => each.count);
  const low = Math.min(1e-1, ...known.map((each) => Math.max(each.p50_ms, 1e-4)));
  const high = Math.max(1e1, ...known.map((each) => each.p99_ms));
  const from = Math.floor(Math.log10(low));
  const to = Math.max(Math.ceil(Math.log10(high)), from + 1);
  const x = (ms) => `${((100 * (Math.log10(Math.max(ms, 10 ** from)) - from)) / (to - from)).toFixed(2)}%`;
  const decades = Array.from({ length: to - from + 1 }, (_, i) => 10 ** (from + i));
  const axis = draw("svg");
  const every = Math.ceil(decades.length / 4);
  decades.forEach((ms, i) => {
    if (i % every) return;
    const text = time(Number((ms * 1e3).toPrecision(3))).replace(/\.0+(?= )/, "");
    axis.append(draw("text", { x: x(ms), y: 13, "text-anchor": "middle", text }));
  });
  $("#spread-axis").replaceChildren(axis);
  for (const name of STRATEGIES) {
    const latency = byStrategy[name].latency;
    const svg = draw("svg", { "aria-hidden": "true" });
    for (const ms of decades) {
      svg.append(draw("line", { class: "grid", x1: x(ms), x2: x(ms), y1: -4, y2: 20 }));
    }
    if (latency.count) {
      const [p50, p95, p99] = [latency.p50_ms, latency.p95_ms, latency.p99_ms].map(x);
      const group = draw("g", { "data-strategy": name });
      group.append(
        draw("line", { class: "range", x1: p50, x2: p99, y1: 8, y2: 8 }),
        draw("line", { class: "tick", x1: p95, x2: p95, y1: 4, y2: 12 }),
        draw("line", { class: "tick", x1: p99, x2: p99, y1: 4, y2: 12 }),
        draw("circle", { cx: p50, cy: 8, r: 3.5 }),
      );
      svg.append(group);
    }
    $(`#strategies [data-row=${name}] .spread`).replaceChildren(svg);
  }
}

// -- Jobs per second ------------------------------------------------------------------------

const LEFT = 56;
const RIGHT = 8;
const TOP = 10;
const BOTTOM = 24;
let cursor = null; // seconds of the router's clock under the pointer, relative to the latest

function ticksUpTo(most) {
  const least = Math.max(most, 4) / 4;
  const power = 10 ** Math.floor(Math.log10(least));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= least * 0.999);
  const count = Math.ceil(Math.max(most, 4) / step);
  return Array.from({ length: count + 1 }, (_, i) => i * step);
}

/** The upper and lower edges of one strategy's areas, as steps: each has the size of its jobs. */
function areaOf(position, x, y) {
  let path = "";
  let upper = [];
  let lower = [];
  const end = () => {
    if (upper.length) path += `M${upper.join("L")}L${lower.reverse().join("L")}Z`;
    upper = [];
    lower = [];
  };
  history.forEach((each, i) => {
    if (i && history[i - 1].to !== each.from) end();
    const below = sum(each.rates.slice(0, position));
    const above = below + each.rates[position];
    for (const at of [x(each.from), x(each.to)]) {
      upper.push(`${at},${y(above)}`);
      lower.push(`${at},${y(below)}`);
    }
  });
  end();
  return path;
}

function showRates() {
  const box = $("#chart");
  const width = Math.max(box.clientWidth, 200);
  const height = box.clientHeight;
  const now = known.stats?.time_s ?? 0;
  const ticks = ticksUpTo(Math.max(0, ...history.map((each) => sum(each.rates))));
  const top = ticks.at(-1);
  const plot = width - LEFT - RIGHT;
  const x = (at) => (LEFT + plot * Math.max(0, 1 - (now - at) / HISTORY_S)).toFixed(1);
  const y = (rate) => (TOP + (height - TOP - BOTTOM) * (1 - rate / top)).toFixed(1);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  for (const tick of ticks) {
    const at = y(tick);
    if (tick) svg.append(draw("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: at, y2: at }));
    svg.append(
      draw("text", { x: LEFT - 8, y: +at + 4, "text-anchor": "end", text: whole.format(tick) }),
    );
  }
  const step = plot < 420 ? 60 : 30;
  for (let ago = HISTORY_S; ago >= 0; ago -= step) {
    const at = x(now - ago);
    const anchor = ago ? (ago === HISTORY_S ? "start" : "middle") : "end";
    svg.append(
      draw("line", { class: "base", x1: at, x2: at, y1: y(0), y2: +y(0) + 4 }),
      draw("text", { x: at, y: height - 5, "text-anchor": anchor, text: ago ? `−${ago} s` : "now" }),
    );
  }
  STRATEGIES.forEach((name, i) => {
    svg.append(draw("path", { class: "area", "data-strategy": name, d: areaOf(i, x, y) }));
  });
  svg.append(draw("line", { class: "base", x1: LEFT, x2: width - RIGHT, y1: y(0), y2: y(0) }));
  const pointed = cursor === null ? undefined : history.find((each) => each.to - now >= cursor);
  if (pointed) {
    const at = x((pointed.from + pointed.to) / 2);
    svg.append(draw("line", { class: "cursor", x1: at, x2: at, y1: TOP, y2: y(0) }));
  }
  const shown = pointed ?? (history.at(-1)?.to === now ? history.at(-1) : undefined);
  STRATEGIES.forEach((name, i) => {
    put($(`#legend [data-strategy=${name}] b`), shown ? rated(shown.rates[i]) : "–");
  });
  put($("#rates-when"), pointed ? `${(now - pointed.to).toFixed(0)} s ago` : "now, and the last 2 minutes");
  box.replaceChildren(svg);
}

function point(event) {
  const box = $("#chart").getBoundingClientRect();
  const part = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
  cursor = part < 0 || part > 1 ? null : (part - 1) * HISTORY_S;
  showRates();
}

function unpoint() {
  cursor = null;
  showRates();
}

/** The arrow keys do what the pointer does. */
function step(event) {
  const by = { ArrowLeft: -2, ArrowRight: 2 }[event.key];
  if (by === undefined && event.key !== "Escape") return;
  event.preventDefault();
  const next = by === undefined ? 1 : (cursor ?? 0) + by;
  cursor = next > 0 ? null : Math.max(next, -HISTORY_S);
  showRates();
}

// -- Latest decisions -----------------------------------------------------------------------

const RENEW_MS = 15_000;
const REFUSED_MS = 10_000;
const streams = new Set(); // two while one takes over from the other
let followedAt = -Infinity;
let refusedAt = -Infinity;
let nextNumber = null; // of the record that comes next
let records = []; // newest first
let unseen = 0; // records that never stood in the list
let waiting = 0; // records that came during a pause
let paused = false;

/**
 * Follow the decisions while there is somebody to look at them: a browser has few connections.
 *
 * The server ends each stream after a while. The next one begins before that, since the router
 * records nothing between the two if nobody else looks on.
 */
function follow() {
  const now = performance.now();
  if (known.state !== "open" || document.hidden || now - refusedAt < REFUSED_MS) return;
  if (streams.size > 1 || (streams.size === 1 && now - followedAt < RENEW_MS)) return;
  const stream = new EventSource("api/decisions");
  streams.add(stream);
  stream.onmessage = (event) => take(JSON.parse(event.data));
  stream.onopen = () => {
    followedAt = performance.now();
    for (const other of streams) if (other !== stream) leave(other);
  };
  stream.onerror = () => {
    if (stream.readyState === EventSource.CLOSED) {
      refusedAt = performance.now();
      leave(stream);
    } else if (known.state !== "open") {
      leave(stream); // which would come back by itself, twice a second
    }
  };
}

function leave(stream) {
  stream.close();
  streams.delete(stream);
}

function unfollow() {
  streams.forEach(leave);
}

function take({ seen, records: latest }) {
  if (nextNumber !== null && seen < nextNumber) nextNumber = null; // another router
  const now = performance.now();
  for (const record of latest) {
    if (nextNumber !== null && record.number < nextNumber) continue;
    if (nextNumber !== null) unseen += record.number - nextNumber;
    nextNumber = record.number + 1;
    record.date = dateOf(record, now);
    records.unshift(record);
    if (paused) waiting += 1;
  }
  for (const lost of records.splice(ROWS)) unseen += lost.shown ? 0 : 1;
  showDecisions();
}

/** When a record was made. Its clock is most often that of the stats, but need not be. */
function dateOf(record, now) {
  const age_s = known.stats.time_s + (now - known.statsAt) / 1e3 - record.at_ns / 1e9;
  return new Date(Date.now() - (Math.abs(age_s) < 3600 ? Math.max(0, 1e3 * age_s) : 0));
}

function showDecisions() {
  const notes = [];
  if (paused && waiting) notes.push(`${whole.format(waiting)} new`);
  if (unseen) notes.push(`${whole.format(unseen)} not shown`);
  put($("#decisions-note"), notes.join(", "));
  if (paused) return;
  const body = $("#decisions");
  while (body.childElementCount < records.length) {
    const cells = Array.from({ length: 9 }, () => make("td", { role: "cell" }));
    cells[5].className = "status";
    body.append(make("tr", { role: "row" }, ...cells));
  }
  records.forEach((record, i) => {
    const row = body.children[i];
    if (row.record !== record) showRecord(row, record);
    record.shown = true;
  });
  $("#no-decisions").hidden = records.length > 0;
}

function showRecord(row, record) {
  row.record = record;
  const { jobs, kind, decided, strategy, reason, status } = record;
  const [latency, budget] = [record.latency_ms, record.latency_budget_ms];
  const late = status === "completed" && budget !== null && latency > budget;
  const job = record.job_id ?? `${whole.format(jobs)} job${jobs === 1 ? "" : "s"}`;
  const tenths = Math.floor(record.date.getMilliseconds() / 100);
  const [at, id, name, ways, why, status_, took, bound, used] = row.cells;
  row.dataset.status = status;
  row.dataset.number = record.number;
  row.classList.toggle("late", late);
  put(at, `${clock.format(record.date)}.${tenths}`);
  for (const [cell, text] of [[id, job], [name, kind], [why, reason]]) {
    put(cell, text);
    cell.title = text;
  }
  ways.replaceChildren(
    ...(decided === null || decided === strategy ? [strategy] : [decided, strategy]).map(named),
  );
  put(status_, late ? "completed, late" : status);
  put(took, FORMATS.ms(latency));
  put(bound, budget === null ? "" : `${+budget.toPrecision(4)} ms`);
  if (budget) {
    const bar = make("div", { class: "track", "aria-hidden": "true" }, make("i"));
    bar.firstElementChild.style.width = `${Math.min(100, (100 * latency) / budget)}%`;
    used.replaceChildren(bar);
  } else {
    used.replaceChildren();
  }
}

function pause() {
  paused = !paused;
  waiting = 0;
  $("#pause").setAttribute("aria-pressed", paused);
  put($("#pause"), paused ? "Resume" : "Pause");
  showDecisions();
}

// -- Settings -------------------------------------------------------------------------------

let configAt = -Infinity;
let sending = false;

/** Values as they stand in the JSON: 2**64-1 is a setting, and beyond what numbers hold here. */
function literals(text) {
  return JSON.parse(text, (_, value, context) =>
    typeof value === "object" && value !== null
      ? value
      : { literal: (typeof value === "number" && context?.source) || JSON.stringify(value) },
  );
}

async function readConfig() {
  configAt = performance.now();
  try {
    learnConfig(await ask("api/config"));
  } catch {
    configAt = -Infinity; // with the next stats
  }
}

function learnConfig(text) {
  const answer = literals(text);
  const entries = Object.entries(answer.config).map(([name, value]) => [name, value.literal]);
  const editable = answer.allow_reconfigure.literal === "true";
  const fresh = known.config === null || known.editable !== editable;
  known.config = Object.fromEntries(entries);
  known.editable = editable;
  if (fresh) makeFields();
  showConfig();
  showLag();
}

function makeFields() {
  const fields = Object.keys(known.config).map((name) => {
    const id = `setting-${name}`;
    return make(
      "div",
      { class: "field" },
      make("label", { for: id, text: name }),
      known.editable ? makeInput(id, name) : make("output", { id, data: { setting: name } }),
    );
  });
  $("#fields").replaceChildren(...fields);
  $("#settings-actions").hidden = !known.editable;
  put($("#settings-note"), known.editable ? "can be changed here" : "read-only");
}

function makeInput(id, name) {
  const literal = known.config[name];
  const choices = /^(true|false)$/.test(literal) ? ["true", "false"] : CHOICES[name];
  const data = { setting: name };
  if (!choices) return make("input", { id, data, placeholder: "null", autocomplete: "off" });
  return make(
    "select",
    { id, data },
    ...choices.map((value) => make("option", { value, text: value.replaceAll('"', "") })),
  );
}

const plain = (literal) => (literal === "null" ? "" : literal);

/** Show the values in force, but leave alone what somebody is changing. */
function showConfig() {
  for (const element of $$("[data-setting]")) {
    const literal = known.config[element.dataset.setting];
    if (!known.editable) put(element, literal);
    else if (!isChanged(element) || element.dataset.value === undefined) element.value = plain(literal);
    element.dataset.value = literal;
  }
  markChanged();
}

function isChanged(element) {
  return literalOf(element) !== element.dataset.value;
}

/** What was entered, as JSON: numbers to the last digit, nothing as null, else a string. */
function literalOf(element) {
  const text = element.value.trim();
  if (element.tagName === "SELECT" || /^-?(0|[1-9]\d*)(\.\d+)?(e[+-]?\d+)?$/i.test(text)) return text;
  if (text === "" || text === "null") return "null";
  return JSON.stringify(text);
}

function markChanged() {
  if (!known.editable) return;
  let changed = 0;
  for (const element of $$("[data-setting]")) {
    const is = isChanged(element);
    element.parentElement.classList.toggle("changed", is);
    changed += is;
  }
  for (const button of $$("#settings-actions button")) button.disabled = changed === 0 || sending;
}

function blame(why) {
  put($("#settings-error"), why);
  for (const element of $$("[data-setting]")) {
    if (why && why.startsWith(`${element.dataset.setting} `)) {
      element.setAttribute("aria-invalid", "true");
      element.setAttribute("aria-describedby", "settings-error");
      element.focus();
    } else {
      element.removeAttribute("aria-invalid");
      element.removeAttribute("aria-describedby");
    }
  }
}

async function change(event) {
  event.preventDefault();
  const changed = known.editable ? [...$$("[data-setting]")].filter(isChanged) : [];
  if (changed.length === 0 || sending) return;
  const pairs = changed.map((each) => `${JSON.stringify(each.dataset.setting)}:${literalOf(each)}`);
  const names = changed.map((each) => each.dataset.setting).join(", ");
  put($("#settings-done"), "");
  blame("");
  sending = true;
  markChanged();
  try {
    const answer = await ask("api/config", {
      method: "PATCH",
      headers: { "Content-Type": "application/json" },
      body: `{${pairs.join(",")}}`,
    });
    for (const each of changed) delete each.dataset.value;
    learnConfig(answer);
    put($("#settings-done"), `Changed ${names}.`);
  } catch (error) {
    const lost = "There was no answer: it may have changed, or not.";
    blame(error.status === undefined ? lost : error.message);
  } finally {
    sending = false;
    markChanged();
  }
}

function undo(event) {
  event.preventDefault();
  for (const element of $$("[data-setting]")) element.value = plain(element.dataset.value);
  blame("");
  put($("#settings-done"), "");
  markChanged();
}

// -- Beginning ------------------------------------------------------------------------------

function begin() {
  for (const strategy of STRATEGIES) {
    const item = make("li", {}, ...named(strategy).childNodes, make("b", { text: "–" }));
    item.dataset.strategy = strategy;
    $("#legend").append(item);
    const stat = (path, format = "count", type = "") =>
      make("td", { class: type, data: { stat: `by_strategy.${strategy}.${path}`, format } });
    $("#strategies").append(
      make(
        "tr",
        { data: { row: strategy } },
        make("th", { scope: "row" }, named(strategy)),
        stat("decided", "count", "wide"),
        stat("routed"),
        stat("latency.count", "count", "wide"),
        stat("latency.avg_ms", "ms", "wide"),
        stat("latency.p50_ms", "ms"),
        stat("latency.p95_ms", "ms"),
        stat("latency.p99_ms", "ms"),
        make("td", { class: "spread" }),
      ),
    );
  }
  $("#chart").addEventListener("pointermove", point);
  $("#chart").addEventListener("pointerleave", unpoint);
  $("#chart").addEventListener("keydown", step);
  $("#chart").addEventListener("blur", unpoint);
  new ResizeObserver(showRates).observe($("#chart"));
  $("#pause").addEventListener("click", pause);
  const form = $("#settings");
  form.addEventListener("input", markChanged);
  form.addEventListener("submit", change);
  form.addEventListener("reset", undo);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) unfollow();
    else void poll();
  });
  window.addEventListener("pageshow", () => void poll());
  window.addEventListener("pagehide", unfollow);
  void poll();
}

begin();
