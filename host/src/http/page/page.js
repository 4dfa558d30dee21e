'use strict';
// The page of a host. News come by server-sent events, one overview a second; details are asked for. Whatever others wrote (names,
// labels, keys, reasons) becomes text and never markup. Rows are made once and changed where their text changes.

const $ = (id) => document.getElementById(id);
const POINTS = 120, LOST_AFTER = 5, PARTS = ['guest', 'loading', 'commit', 'held_back', 'waiting'];
const PART_WORDS = { guest: 'guest', loading: 'loading documents', commit: 'waiting for the journal', held_back: 'held back', waiting: 'waiting for events' };
const STATUSES = ['running', 'compensating', 'completed', 'compensated', 'compensation_failed', 'failed'];
const LATENCIES = [250, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 2e6, 5e6];
const rows = new Map();
let overview = null, about = { actions: false }, show = 'all', token = '', sortedAt = 0, drawn = '';

// Text, as it may be shown: controls and marks of direction are written out.
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
const legible = (text) => String(text ?? '').replace(HIDDEN, (letter) => letter === '\n' ? '\\n' : `\\u{${letter.charCodeAt(0).toString(16)}}`);
const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
const thousands = (number) => Math.round(number).toString().replace(/\B(?=(\d{3})+(?!\d))/g, ',');
function duration(s) {
  if (s <= 0) return '0 s';
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 120) return `${s.toFixed(0)} s`;
  if (s < 7200) return `${(s / 60).toFixed(0)} min`;
  return s < 172800 ? `${(s / 3600).toFixed(0)} h` : `${(s / 86400).toFixed(0)} d`;
}
function bytes(n) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  while (n >= 1024 && unit < 4) { n /= 1024; unit += 1; }
  return `${unit && n < 100 ? n.toFixed(1) : n.toFixed(0)} ${units[unit]}`;
}
const rate = (n) => n >= 100 ? thousands(n) : n === 0 ? '0' : n.toFixed(1);
const ago = (nanoseconds) => duration((overview.time - nanoseconds) / 1e9);
const short = (digest) => legible(digest).slice(0, 12);
const counted = (n, one, more) => `${thousands(n)} ${n === 1 ? one : more}`;

// An element with attributes and children; strings become text.
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat().filter((child) => child != null).map((child) => typeof child === 'object' ? child : legible(child)));
  return node;
}
function svg(tag, attributes) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

// What a state is like. Its words always stand beside the colour.
function tone(state) {
  if (state === 'running' || state.startsWith('rebuilding')) return 'ok';
  if (state === 'paused' || state === 'not-started') return 'idle';
  return state === 'not-reporting' || state === 'failing' ? 'bad' : 'warn';
}
const stateWords = ({ state, reported_seconds_ago: silent }) => state === 'not-reporting' && silent != null ? `not reporting for ${silent.toFixed(0)} s` : state.replaceAll('-', ' ');
const RANK = { bad: 0, warn: 1, ok: 2, idle: 3 };
const attention = (handler) => RANK[tone(handler.state)] < 2 || Boolean(handler.refused) || Boolean(handler.lag_fault)
  || overview.alerts.some((alert) => alert.handler === handler.handler);

// A chart: two paths that are moved, never made anew.
function chart(kind) {
  const drawing = svg('svg', { class: `chart ${kind}`, viewBox: '0 0 120 30', preserveAspectRatio: 'none', 'aria-hidden': 'true' });
  const area = drawing.appendChild(svg('path', { class: 'area' })), line = drawing.appendChild(svg('path', { class: 'line' }));
  return { drawing, area, line };
}
// What was unknown leaves a gap. Each chart is scaled by its own highest, which stands beside it.
const highest = (points) => Math.max(0, ...points);
function plot({ area, line }, points) {
  const most = Math.max(1, highest(points)), from = POINTS - points.length, runs = [];
  points.forEach((value, index) => {
    if (value == null) return;
    if (!index || points[index - 1] == null) runs.push([]);
    runs[runs.length - 1].push([(from + index) * 120 / (POINTS - 1), (29 - 27 * value / most).toFixed(2)]);
  });
  const path = (run) => run.map(([x, y], index) => `${index ? 'L' : 'M'}${x} ${y}`).join('');
  line.setAttribute('d', runs.map(path).join(''));
  area.setAttribute('d', runs.filter((run) => run.length > 1).map((run) => `${path(run)}L${run[run.length - 1][0]} 30L${run[0][0]} 30Z`).join(''));
}

// Where the time went lately, as shares; from totals where nothing is known of before.
function shares(row) {
  const [first, last] = [row.busy[0], row.busy[row.busy.length - 1]];
  if (!last) return null;
  const spent = PARTS.map((part) => Math.max(0, row.busy.length > 1 ? last[part] - first[part] : last[part]));
  const all = spent.reduce((sum, one) => sum + one, 0);
  return all > 0 ? spent.map((one) => one / all) : null;
}
function split(bar, parts) {
  while (bar.children.length < PARTS.length) bar.append(el('i', { class: `p-${PARTS[bar.children.length]}` }));
  PARTS.forEach((part, index) => { bar.children[index].style.width = `${((parts ? parts[index] : 0) * 100).toFixed(1)}%`; });
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const row = rows.get(entry.target.dataset.handler);
    if (row) { row.visible = entry.isIntersecting; if (row.visible) plot(row.chart, row.points); }
  }
}, { rootMargin: '200px' });

function makeRow(name) {
  const cell = (field, attributes = {}) => el('td', { 'data-field': field, ...attributes });
  const cells = {
    name: el('td'), state: cell('state'), events: cell('events', { class: 'n', 'data-label': 'behind' }),
    seconds: cell('seconds', { class: 'n', 'data-label': 'oldest' }), chart: el('td', { class: 'c-chart' }),
    in: cell('in', { class: 'n c-rate' }), out: cell('out', { class: 'n c-rate' }), eta: cell('eta', { class: 'n c-eta' }),
    busy: el('td', { class: 'c-busy' }), host: cell('host', { class: 'c-host' }),
  };
  const most = el('small', { class: 'most' }), more = el('small'), title = el('span', {}, name), pill = el('span', { class: 'pill' }), bar = el('div', { class: 'split' });
  const button = el('button', { class: 'name', type: 'button', tabindex: '-1', onclick: () => go('handler', name) }, title, more);
  cells.name.append(button); cells.state.append(pill); cells.busy.append(bar);
  const row = { name, cells, more, most, pill, bar, button, chart: chart('small'), points: [], busy: [], visible: true };
  cells.chart.append(row.chart.drawing, most);
  row.node = el('tr', { 'data-handler': name, onclick: (event) => { if (event.target !== button && !button.contains(event.target)) button.click(); } }, Object.values(cells));
  seen.observe(row.node);
  return row;
}

function fillRow(row, handler) {
  row.handler = handler;
  const { events: lag, seconds: age, rates: moves } = handler.totals, { cells } = row, unknown = lag == null;
  row.points.push(lag); if (row.points.length > POINTS) row.points.shift();
  if (handler.numbers.since) { row.busy.push(handler.numbers.busy); if (row.busy.length > 10) row.busy.shift(); } else row.busy = [];
  put(row.more, legible([handler.kind, handler.label].filter(Boolean).join(' · ')));
  put(row.pill, legible(stateWords(handler))); row.pill.dataset.tone = tone(handler.state); row.pill.title = legible(handler.reason);
  put(cells.events, unknown ? 'unknown' : thousands(lag)); cells.events.dataset.value = unknown ? '' : lag; cells.events.classList.toggle('zero', lag === 0);
  put(cells.seconds, unknown ? '–' : duration(age)); cells.seconds.dataset.value = unknown ? '' : age; cells.seconds.classList.toggle('zero', age === 0);
  put(cells.in, moves ? rate(moves.in_rate) : '–'); put(cells.out, moves ? rate(moves.out_rate) : '–');
  const grows = lag > 0 && moves && moves.trend > 0 && handler.state !== 'paused';
  put(cells.eta, moves && moves.eta_seconds != null ? duration(moves.eta_seconds) : grows ? 'grows' : '–');
  put(cells.host, legible(handler.host)); cells.host.title = legible(handler.host);
  row.text = `${handler.handler} ${stateWords(handler)} ${handler.label} ${handler.kind} ${handler.host} ${handler.lag.map((one) => one.stream).join(' ')}`.toLowerCase();
  row.lag = lag; row.age = age; row.attention = attention(handler);
  const parts = shares(row);
  split(row.bar, parts);
  row.bar.title = parts ? PARTS.map((part, index) => `${PART_WORDS[part]} ${(parts[index] * 100).toFixed(0)} %`).join(', ') : 'not measured';
  put(row.most, highest(row.points) ? `max ${thousands(highest(row.points))}` : '');
  if (row.visible) plot(row.chart, row.points);
}

// Which rows are shown, and in what order. Rows do not jump about under a pointer or a choice.
function arrange(now) {
  const words = $('search').value.trim().toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows.values()) {
    const fits = words.every((word) => row.text.includes(word)) && (show === 'all' || (show === 'behind' ? row.lag > 0 : row.attention));
    if (row.node.hidden === fits) row.node.hidden = !fits;
    shown += fits;
  }
  const body = $('table').tBodies[0], moving = body.matches(':hover') || body.contains(document.activeElement);
  if (now || (!moving && Date.now() - sortedAt > 3000)) { order(body); sortedAt = Date.now(); }
  $('none').hidden = shown > 0; $('table').hidden = shown === 0;
  put($('none'), rows.size ? 'No handler fits the filter. Esc clears it.' : 'Nothing is deployed here. Begin with: millstream deploy MODULE.wasm');
  rove();
}
function order(body) {
  const by = {
    attention: (one, other) => (other.attention - one.attention) || RANK[tone(one.handler.state)] - RANK[tone(other.handler.state)],
    lag: (one, other) => other.lag - one.lag, age: (one, other) => other.age - one.age, name: () => 0,
  }[$('sort').value];
  const wanted = [...rows.values()].sort((one, other) => by(one, other) || (one.name < other.name ? -1 : 1));
  if (wanted.every((row, index) => body.children[index] === row.node) && body.children.length === wanted.length) return;
  const held = document.activeElement;
  body.replaceChildren(...wanted.map((row) => row.node));
  if (held && held !== document.activeElement && body.contains(held)) held.focus({ preventScroll: true });
}
// One row at a time is in the order of the Tab key.
function rove(chosen) {
  const buttons = visibleButtons();
  const current = chosen || buttons.find((button) => button.tabIndex === 0) || buttons[0];
  for (const row of rows.values()) { const index = row.button === current ? 0 : -1; if (row.button.tabIndex !== index) row.button.tabIndex = index; }
}
const visibleButtons = () => [...$('table').tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.querySelector('.name'));

function sum(name, text) { put(document.querySelector(`[data-sum="${name}"]`), text); }
function summary() {
  const { handlers, sums } = overview, count = (state) => handlers.filter((handler) => handler.state === state).length;
  const stand = [['running', 'running'], ['failing', 'failing'], ['not-reporting', 'silent'], ['not-started', 'not started']];
  sum('handlers', thousands(handlers.length));
  sum('running', stand.filter(([state]) => state === 'running' || count(state)).map(([state, word]) => `${thousands(count(state))} ${word}`).join(', '));
  sum('events', thousands(sums.events)); sum('unknown', sums.unknown ? `events, ${sums.unknown} unknown` : 'events');
  sum('oldest', duration(sums.seconds)); sum('alerts', thousands(overview.alerts.length)); sum('hosts', thousands(overview.hosts.length));
  document.querySelector('[data-sum="alerts"]').parentElement.classList.toggle('tone-bad', overview.alerts.length > 0);
  document.querySelector('[data-sum="hosts"]').parentElement.classList.toggle('tone-bad', overview.hosts.length === 0 && handlers.length > 0);
}
function alerts() {
  const list = $('alerts').querySelector('ul');
  $('alerts').hidden = overview.alerts.length === 0;
  overview.alerts.forEach((alert, index) => {
    const node = list.children[index] || list.appendChild(el('li', {}, el('b'), el('p'), el('span')));
    put(node.children[0], legible(alert.alert)); put(node.children[1], legible(alert.handler ? `${alert.handler}: ${alert.text}` : alert.text));
    put(node.children[2], `for ${ago(alert.since)}`);
  });
  while (list.children.length > overview.alerts.length) list.lastChild.remove();
}
function hosts() {
  const all = new Map(overview.hosts.map((name) => [name, { live: true, handlers: 0, lag: 0, unknown: 0 }]));
  for (const handler of overview.handlers) {
    if (!handler.host) continue;
    if (!all.has(handler.host)) all.set(handler.host, { live: false, handlers: 0, lag: 0, unknown: 0 });
    const host = all.get(handler.host);
    host.handlers += 1; host.lag += handler.totals.events ?? 0; host.unknown += handler.totals.events == null;
  }
  const list = $('hosts').querySelector('ul'), names = [...all.keys()].sort();
  names.forEach((name, index) => {
    const node = list.children[index] || list.appendChild(el('li', {}, el('b'), el('span')));
    const { live, handlers, lag, unknown } = all.get(name), behind = `${thousands(lag)} behind${unknown ? `, ${thousands(unknown)} unknown` : ''}`;
    put(node.children[0], legible(name)); node.children[0].title = legible(name);
    put(node.children[1], `${live ? 'live' : 'gone'} · ${live ? '' : 'ran '}${counted(handlers, 'handler', 'handlers')} · ${behind}`);
  });
  while (list.children.length > names.length) list.lastChild.remove();
  $('hosts').querySelector('p').hidden = names.length > 0;
}

function take(news) {
  overview = news;
  const known = new Set();
  for (const handler of news.handlers) {
    known.add(handler.handler);
    if (!rows.has(handler.handler)) { const row = makeRow(handler.handler); rows.set(handler.handler, row); $('table').tBodies[0].append(row.node); sortedAt = 0; }
    fillRow(rows.get(handler.handler), handler);
  }
  for (const [name, row] of rows) if (!known.has(name)) { seen.unobserve(row.node); row.node.remove(); rows.delete(name); }
  summary(); alerts(); hosts(); arrange(sortedAt === 0);
  const behind = [...rows.values()].filter((row) => row.lag > 0).length, worry = [...rows.values()].filter((row) => row.attention).length;
  put(document.querySelector('[data-show="behind"]'), `Behind ${behind || ''}`.trim()); put(document.querySelector('[data-show="attention"]'), `Attention ${worry || ''}`.trim());
  if (drawn.startsWith('handler/')) figures();
}

// The drawer. Where it is stands in the address, so that links and the back button work.
const place = () => location.hash.replace(/^#\//, '').split('/').map((part) => { try { return decodeURIComponent(part); } catch { return part; } });
function go(...parts) { location.hash = parts.length ? `/${parts.map(encodeURIComponent).join('/')}` : ''; }
async function ask(path, options) {
  const answer = await fetch(path, options);
  const said = await answer.json().catch(() => ({ error: `the host answered ${answer.status}` }));
  if (!answer.ok) throw new Error(said.hint ? `${said.error}. ${said.hint}` : said.error);
  return said;
}
function open(title, ...children) {
  $('drawer').hidden = false;
  put($('drawer-title'), legible(title));
  $('content').replaceChildren(...children.filter((child) => child != null)); $('content').scrollTop = 0;
  $('drawer-title').focus({ preventScroll: true });
}
async function draw() {
  const [what, name, part, more] = place(), here = location.hash;
  drawn = what === 'handler' && !part ? `handler/${name}` : here;
  $('back').hidden = !part;
  if (what !== 'handler' || !name) { close(); return; }
  try {
    if (part === 'saga') await story(name, more, here);
    else if (part === 'sagas') await instances(name, more, here);
    else if (part === 'dead') await dead(name, here);
    else await handlerView(name, here);
  } catch (error) {
    if (here === location.hash) open(name, el('p', { class: 'note bad' }, error.message));
  }
}
function close() {
  if ($('drawer').hidden) return;
  const row = rows.get($('drawer').dataset.name);
  $('drawer').hidden = true; $('content').replaceChildren(); drawn = '';
  if (row && !row.node.hidden) row.button.focus({ preventScroll: true });
}
function up() {
  const [, name, part] = place();
  if (part) go('handler', name); else { go(); history.replaceState(null, '', location.pathname); draw(); }
}

async function handlerView(name, here) {
  $('drawer').dataset.name = name;
  const versions = el('ol', { class: 'list' }, el('li', {}, 'reading …'));
  const big = chart('big');
  open(name, el('div', { id: 'figures' }), el('div', { id: 'sagas' }), el('div', { id: 'parked' }), el('div', { id: 'details' }), el('h3', {}, 'Deployments'), versions, about.actions ? actions(name) : null);
  $('figures').chart = big; figures();
  const { deployments } = await ask(`/api/handlers/${encodeURIComponent(name)}`);
  if (here !== location.hash) return;
  versions.replaceChildren(...deployments.map((one) => el('li', {},
    el('b', {}, one.label || short(one.digest) || one.desired), one.runs ? el('small', {}, '  runs now') : null,
    el('div', { class: 'mono' }, `${one.time}  revision ${one.revision}  ${short(one.digest)}  ${one.desired}`), one.note ? el('small', {}, one.note) : null)));
}
const fact = (name, text) => text === '' || text == null ? null : el('div', {}, el('dt', {}, name), el('dd', {}, text));
const facts = (...all) => el('dl', { class: 'facts' }, all);
function quantile(latency, share) {
  const all = latency.buckets.reduce((sum, one) => sum + one, 0);
  let before = 0;
  for (let index = 0; index < latency.buckets.length; index += 1) {
    before += latency.buckets[index];
    if (all && before >= all * share) return index < LATENCIES.length ? `≤ ${LATENCIES[index] >= 1e6 ? `${LATENCIES[index] / 1e6} s` : `${LATENCIES[index] / 1e3} ms`}` : '> 5 s';
  }
  return '';
}
// The part of the drawer that is live. It has nothing that could lose the focus.
function figures() {
  const name = $('drawer').dataset.name, row = rows.get(name), box = $('figures');
  if (!box) return;
  if (!row) { box.replaceChildren(el('p', { class: 'note' }, overview ? 'This handler is not deployed.' : 'reading …')); return; }
  const { handler } = row, { numbers, counts } = handler, moves = handler.totals.rates, parts = shares(row), measured = numbers.since > 0;
  plot(box.chart, row.points);
  const bar = el('div', { class: 'split' }); split(bar, parts);
  const mine = overview.alerts.filter((alert) => alert.handler === name);
  box.replaceChildren(...[
    ...mine.map((alert) => el('p', { class: 'note bad' }, `${alert.alert} for ${ago(alert.since)}: ${alert.text}`)),
    handler.reason ? el('p', { class: `note ${tone(handler.state) === 'bad' ? 'bad' : ''}` }, handler.reason) : null,
    handler.refused && handler.refused.reason !== handler.reason ? el('p', { class: 'note bad' }, `${short(handler.refused.digest) || `revision ${handler.refused.revision}`} was refused: ${handler.refused.reason}`) : null,
    handler.outcomes_add_up ? null : el('p', { class: 'note bad' }, 'The outcomes do not add up to what was delivered: a defect of Millstream. Please report it.'),
    handler.lag_fault ? el('p', { class: 'note bad' }, `the lag cannot be told: ${handler.lag_fault}`) : null,
    facts(fact('State', stateWords(handler)), fact('Undecided', row.lag == null ? 'unknown' : counted(row.lag, 'event', 'events')), fact('Oldest', row.age == null ? 'unknown' : duration(row.age)),
      fact('In', moves && `${rate(moves.in_rate)} / s`), fact('Out', moves && `${rate(moves.out_rate)} / s`), fact('Trend', moves && handler.state !== 'paused' ? `${moves.trend > 0 ? '+' : ''}${moves.trend.toFixed(1)} / s` : null),
      fact('Done in', moves && moves.eta_seconds != null ? duration(moves.eta_seconds) : null), fact('Reported', handler.reported_seconds_ago == null ? 'never' : `${duration(handler.reported_seconds_ago)} ago`), fact('Host', handler.host)),
    box.chart.drawing, el('div', { class: 'scale' }, el('span', {}, '2 min ago'), el('span', {}, row.lag == null ? '' : `at most ${thousands(highest(row.points))} behind`), el('span', {}, 'now')),
  ].filter(Boolean));
  $('details').replaceChildren(...[
    ...handler.lag.flatMap((lag) => [el('h3', {}, `Stream ${lag.stream}`), facts(fact('Undecided', thousands(lag.events)), fact('Oldest', duration(lag.seconds)), fact('Position', thousands(lag.position)), fact('Head', thousands(lag.head)))]),
    parts ? el('h3', {}, 'Where the time goes') : null, parts ? bar : null,
    parts ? el('div', { class: 'legend' }, PARTS.map((part, index) => el('span', { class: `p-${part}` }, `${PART_WORDS[part]} ${(parts[index] * 100).toFixed(0)} %`))) : null,
    el('h3', {}, 'Events since the generation began'),
    facts(fact('Delivered', thousands(counts.delivered)), fact('Applied', thousands(counts.applied)), fact('Irrelevant', thousands(counts.irrelevant)), fact('Ignored', thousands(counts.ignored)),
      fact('Parked', thousands(counts.parked)), fact('Expired', thousands(counts.expired)), fact('Lost', counts.lost ? thousands(counts.lost) : null),
      fact('Undelivered effects', handler.undelivered_effects ? thousands(handler.undelivered_effects) : null), fact('Parked keys', numbers.parked_keys ? thousands(numbers.parked_keys) : null)),
    measured ? el('h3', {}, 'Since the host began') : null,
    measured ? facts(fact('Decided', `${thousands(numbers.events)} events`), fact('In batches', thousands(numbers.batches)), fact('Latency, half', quantile(numbers.latency, .5)), fact('Latency, 99 of 100', quantile(numbers.latency, .99)),
      fact('Fuel an event', numbers.events ? thousands(numbers.fuel / numbers.events) : null), fact('Guest memory', bytes(numbers.guest_memory_bytes)),
      fact('Journal', numbers.sizes.time ? `${thousands(numbers.sizes.journal_records)} records, ${bytes(numbers.sizes.journal_bytes)}` : null), fact('Bucket', numbers.sizes.time ? `${thousands(numbers.sizes.documents)} keys, ${bytes(numbers.sizes.documents_bytes)}` : null)) : null,
    el('h3', {}, 'Module'), facts(fact('Digest', short(handler.digest)), fact('Kind', handler.kind), fact('State version', handler.state_version || null), fact('Label', handler.label)),
  ].filter(Boolean));
  sagas(handler); parked(handler);
}
// Buttons to the instances; made once for each set of counts, so that a focus stays.
function sagas(handler) {
  const box = $('sagas'), census = handler.numbers.census, least = census && census.partial ? '≥ ' : '';
  if (handler.kind !== 'saga') { box.replaceChildren(); return; }
  const counts = STATUSES.map((status) => census ? census[status] : null);
  if (!box.firstChild) {
    const button = (status) => el('button', { type: 'button', 'data-status': status, onclick: () => go('handler', handler.handler, 'sagas', status.replace('_', '-')) });
    box.append(el('h3', {}, 'Instances'), el('div', { class: 'row' }, ['all', ...STATUSES].map(button)), el('p'));
  }
  for (const button of box.querySelectorAll('button')) {
    const { status } = button.dataset, count = counts[STATUSES.indexOf(status)];
    put(button, `${status.replace('_', ' ')}${count == null ? '' : ` ${least}${thousands(count)}`}`);
  }
  put(box.lastChild, census ? legible([census.oldest_running && `oldest running: ${census.oldest_running[0]}, unchanged for ${ago(census.oldest_running[1])}`,
    `${least}${counted(census.timers_pending, 'timer', 'timers')} pending, ${least}${thousands(census.timers_overdue)} overdue`, `counted ${ago(census.time)} ago`].filter(Boolean).join(' · ')) : '');
}
// How many keys are parked, and a button to them; made once, so that a focus stays.
function parked(handler) {
  const box = $('parked'), { parked_keys: keys, oldest_parked: since } = handler.numbers;
  if (!keys) { box.replaceChildren(); return; }
  if (!box.firstChild) box.append(el('h3', {}, 'Parked keys'), el('div', { class: 'row' }, el('button', { type: 'button', id: 'dead', onclick: () => go('handler', handler.handler, 'dead') })));
  put($('dead'), `${counted(keys, 'key', 'keys')} parked${since == null ? '' : `, the oldest for ${ago(since)}`}`);
}
// A word of a shell, whatever is in it.
const quoted = (word) => /^[\w.:@%+=,/-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
// What names a parked key in a command. One with controls or marks of direction is not the same once it is shown and copied, and no
// command line can hold a NUL: its first letter names it, as it names an event without a key.
const named = ({ key, letter }) => key == null || legible(key) !== key ? `--letter ${letter}` : `--key ${quoted(key)}`;
async function dead(name, here) {
  $('drawer').dataset.name = name;
  open(`${name}: parked keys`, el('p', {}, 'reading …'));
  const { parked: found, keys } = await ask(`/api/handlers/${encodeURIComponent(name)}/dead`);
  if (here !== location.hash) return;
  open(`${name}: parked keys`, el('p', {}, found.length ? `${counted(keys, 'key', 'keys')}${keys > 50 ? '; here are 50 of them' : ''}. Mend what is wrong, then take them up again.` : 'No key is parked any more.'),
    el('ul', { class: 'list' }, found.map((one) => el('li', { 'data-key': one.key ?? '' }, el('b', {}, one.key ?? `event ${one.letter} without a key`), el('span', {}, one.class),
      el('small', { class: 'wide' }, `${one.reason} · ${counted(one.units, 'event', 'events')}, parked for ${duration(one.age_seconds)} · ${one.stream}:${one.sequence} on ${one.subject}`),
      el('pre', { class: 'wide' }, `millstream redrive ${name} ${named(one)}`)))));
}
async function instances(name, status, here) {
  $('drawer').dataset.name = name;
  const list = el('ul', { class: 'list' }), more = el('button', { type: 'button' }, 'More'), row = el('div', { class: 'row' }, more), empty = el('p', { class: 'empty', hidden: true }, 'No instance stands so.');
  let after = null, wanted = status === 'all' ? '' : status;
  async function page() {
    more.disabled = true; put(more, 'reading …');
    const query = new URLSearchParams({ ...(wanted && { status: wanted }), ...(after != null && { after }) });
    const { instances: found, next } = await ask(`/api/handlers/${encodeURIComponent(name)}/sagas?${query}`);
    if (here !== location.hash) return;
    list.append(...found.map((one) => el('li', { class: 'press' }, el('button', { type: 'button', 'data-key': one.key, onclick: () => go('handler', name, 'saga', one.key) },
      el('b', {}, one.key), el('span', {}, one.status), el('small', { class: 'wide' }, [one.reason, ...one.open_steps.map((step) => `${step.step} ${step.state}${step.attempt > 1 ? ` #${step.attempt}` : ''}`),
        ...one.timers.map((timer) => `${timer.name} at ${timer.at}`), one.changed_seconds_ago != null ? `changed ${duration(one.changed_seconds_ago)} ago` : null].filter(Boolean).join(' · '))))));
    after = next; more.disabled = false; put(more, 'More'); row.hidden = next == null; empty.hidden = list.children.length > 0 || next != null;
  }
  more.addEventListener('click', () => page().catch((error) => { put(more, legible(error.message)); }));
  open(`${name}: ${status.replace('-', ' ')} instances`, el('p'), list, empty, row);
  await page();
}
function outcome(deed) {
  const { outcome: came } = deed;
  if (typeof came === 'string') return { waits: 'waits for an answer', sent: 'sent', fired: 'came', cancelled: 'was taken back', unknown: 'no answer was found', 'no-answer': 'no answer in time' }[came] || came;
  const { answered } = came;
  return answered ? `answered by ${answered.event_type}${answered.after_ms != null ? ` after ${thousands(answered.after_ms)} ms` : ''}` : JSON.stringify(came);
}
// How a chapter went, for its mark: its words stand beside it.
const went = ({ effects }) => effects.some((one) => one.outcome === 'no-answer' || one.outcome === 'unknown') ? 'bad' : effects.some((one) => one.outcome === 'waits') ? 'waits' : 'well';
async function story(name, key, here) {
  $('drawer').dataset.name = name;
  open(key, el('p', {}, 'reading …'));
  const told = await ask(`/api/handlers/${encodeURIComponent(name)}/sagas/${encodeURIComponent(key)}`);
  if (here !== location.hash) return;
  const json = (value) => value == null ? null : el('pre', {}, JSON.stringify(value));
  const deed = (one) => el('li', { 'data-went': went({ effects: [one] }) }, el('b', {}, `${one.kind} ${one.name}`), ` ${[one.step && `step ${one.step}`, one.attempt > 1 && `attempt ${one.attempt}`, one.due && `due ${one.due}`].filter(Boolean).join(', ')} `, el('div', {}, outcome(one)), json(one.payload));
  open(key, facts(fact('Saga', told.handler), fact('Stands', told.status), fact('Why', told.reason), fact('Late events', told.late || null), fact('Correlation', told.correlation)),
    el('ol', { class: 'story' }, told.events.map((chapter) => el('li', { 'data-went': went(chapter) }, el('b', {}, chapter.type), ` ${chapter.did}`,
      el('div', { class: 'mono' }, [chapter.at, chapter.stream && `${chapter.stream}:${chapter.sequence}`, chapter.host && `on ${chapter.host}`, chapter.digest].filter(Boolean).join('  ')),
      json(chapter.payload), chapter.effects.length ? el('ul', { class: 'deeds' }, chapter.effects.map(deed)) : null))),
    ...(told.missing.length ? [el('h3', {}, 'What could not be found'), el('ul', { class: 'list' }, told.missing.map((one) => el('li', {}, one)))] : []),
    el('h3', {}, 'State'), json(told.state) || el('p', {}, 'none'));
}

// Actions, where the host has a token. It is kept for as long as the page is open, and nowhere else.
function actions(name) {
  const said = el('p', { role: 'status' });
  const button = (action, word, text) => el('button', { type: 'button', onclick: async () => {
    if (!await sure(word, text)) return;
    said.className = ''; put(said, 'waiting for the hosts …');
    try {
      const done = await ask(`/api/handlers/${encodeURIComponent(name)}/${action}`, { method: 'POST', headers: { Authorization: `Bearer ${token}` } });
      put(said, legible(done.state));
    } catch (error) { token = ''; said.className = 'note bad'; put(said, legible(error.message)); }
  } }, word);
  return el('div', {}, el('h3', {}, 'Actions'), el('div', { class: 'row' }, button('pause', 'Pause', `${name} stops deciding; what comes waits.`), button('resume', 'Resume', `${name} goes on.`),
    button('rollback', 'Roll back', `${name} goes back to the version before, with the settings of then; if it is paused, it runs again.`)), said);
}
function sure(title, text) {
  put($('ask-title'), title); put($('ask-text'), legible(text)); $('token').value = token; $('ask').returnValue = 'no'; $('ask').showModal();
  return new Promise((answer) => { $('ask').addEventListener('close', () => { token = $('token').value; answer($('ask').returnValue === 'yes'); }, { once: true }); });
}

// News.
let source = null, lastSign = Date.now(), lastNews = 0, broken = false, fault = '';
function listen() {
  source = new EventSource('/events');
  const sign = () => { lastSign = Date.now(); broken = false; };
  source.addEventListener('overview', (event) => { sign(); lastNews = Date.now(); fault = ''; take(JSON.parse(event.data)); pulse(); });
  source.addEventListener('fault', (event) => { sign(); fault = JSON.parse(event.data); pulse(); });
  source.addEventListener('alive', sign);
  source.addEventListener('error', () => {
    broken = true; pulse();
    // A refusal is for good, as browsers see it.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 2000);
  });
}
function pulse() {
  const silent = (Date.now() - lastSign) / 1000, age = (Date.now() - lastNews) / 1000, live = $('live');
  const lost = broken || silent > LOST_AFTER;
  let text = '';
  if (lost) text = `connection lost for ${Math.floor(silent)} s`;
  else if (fault) text = `no numbers: ${fault}`;
  put(live, lost ? 'lost' : fault ? 'no numbers' : !lastNews ? 'connecting' : age < LOST_AFTER ? 'live' : `${duration(age)} old`);
  live.dataset.tone = lost || fault ? 'bad' : !lastNews ? 'idle' : age < LOST_AFTER ? 'ok' : 'warn';
  const since = lastNews ? `; what is shown is of ${duration(age)} ago` : '';
  put($('lost'), text && legible(text + since)); $('lost').hidden = !text; $('main').classList.toggle('stale', Boolean(text));
}

// Keys and buttons.
document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $('ask').open) return;
  const typing = event.target.matches('input, select, textarea');
  if (event.key === '/' && !typing) { event.preventDefault(); $('search').focus(); $('search').select(); return; }
  if (event.key === 'Escape') {
    if (!$('drawer').hidden) up(); else if ($('search').value) { $('search').value = ''; arrange(true); } else document.activeElement.blur();
    event.preventDefault(); return;
  }
  const step = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
  const inTable = event.target.matches('.name'), fromSearch = event.target === $('search') && event.key === 'ArrowDown';
  if (!step || (typing && !fromSearch) || (!$('drawer').hidden && !inTable)) return;
  const buttons = visibleButtons(), at = buttons.indexOf(event.target);
  if (!buttons.length || (!inTable && event.key !== 'ArrowDown')) return;
  const next = buttons[Math.min(buttons.length - 1, Math.max(0, inTable ? at + step : 0))];
  rove(next); next.focus(); next.scrollIntoView({ block: 'nearest' }); event.preventDefault();
});
$('search').addEventListener('input', () => arrange(true));
$('search').addEventListener('keydown', (event) => { if (event.key === 'Enter') { const [first] = visibleButtons(); if (first) first.click(); } });
$('sort').addEventListener('change', () => arrange(true));
for (const chip of document.querySelectorAll('[data-show]')) chip.addEventListener('click', () => {
  show = chip.dataset.show;
  for (const other of document.querySelectorAll('[data-show]')) other.setAttribute('aria-pressed', String(other === chip));
  arrange(true);
});
$('back').addEventListener('click', up);
$('close').addEventListener('click', () => { go(); history.replaceState(null, '', location.pathname); draw(); });
window.addEventListener('hashchange', draw);
const THEMES = ['auto', 'dark', 'light'];
function theme(name) { if (name === 'auto') delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = name; put($('theme'), name); }
const remembered = () => { try { return localStorage.getItem('theme') || 'auto'; } catch { return 'auto'; } };
$('theme').addEventListener('click', () => {
  const next = THEMES[(THEMES.indexOf(remembered()) + 1) % 3];
  try { localStorage.setItem('theme', next); } catch { /* a browser that keeps nothing */ }
  theme(next);
});
theme(remembered());
ask('/api/host').then((said) => { about = said; put($('about'), legible(`host ${said.host} · version ${said.version}${said.actions ? '' : ' · reads only'}`)); if (location.hash) draw(); }).catch(() => {});
setInterval(pulse, 500);
listen();
