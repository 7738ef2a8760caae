"use strict";
// Weighs the arms again for one use, as the package does (analysis/weighing.py, scoring.py, smaa.py, owning.py); no
// access to the page. `shares` are weights that sum to 1, `inputs` prices and volumes, null where they are not known.

// The first year's US dollars of one arm, what of them goes by the length of a run, and what they leave out.
function bill(taken, inputs, rules) {
  const {tenants, retrainings_per_month: again, requests_per_month: requests, usd_per_hour: hour} = inputs;
  const missing = new Set();
  let once = 0, monthly = 0, by_length = 0, priced = 0;
  const usd = (what, amount, price) => {
    if (amount === null || price === null) {
      missing.add(what);
      return 0;
    }
    priced += 1;
    return amount * price;
  };
  const hours = (seconds) => seconds === null ? null : seconds / 3600;
  const sum = (base, each) => each === null || (taken.shares_base && base === null) ? null : (base ?? 0) + tenants * each;

  once += usd("tuning", hours(taken.tuning_s), hour);
  once += usd("finals", hours(taken.finals_s), hour);
  once += usd("evaluation", hours(taken.evaluation_s), hour);
  if (tenants > 1) {
    const further = usd("further variants", hours(taken.iteration_s && (tenants - 1) * taken.iteration_s), hour);
    once += further;
    by_length += further;
  }
  once += usd("engineers", inputs.engineer_hours, inputs.usd_per_engineer_hour);

  const bytes = sum(taken.base_bytes, taken.artifact_bytes);
  monthly += usd("storage", bytes === null ? null : bytes / rules.gb_bytes, inputs.usd_per_gb_month);
  const machines = machinesOf(taken, inputs, rules, sum(taken.resident_base_bytes, taken.resident_bytes) !== null);
  monthly += usd("serving", requests === null || machines === null ? null : machines * rules.hours_per_month, hour);
  if (again) {
    const runs = taken.iteration_s === null ? null : tenants * again * taken.iteration_s;
    const retraining = usd("retraining", hours(runs), hour);
    monthly += retraining;
    by_length += 12 * retraining;
  }
  return {arm: taken.arm, usd: once + 12 * monthly, by_length, missing, priced};
}

// Null where that is not known, or not even one variant fits a machine.
function machinesOf(taken, inputs, rules, sized) {
  const rate = inputs.tenants > 1 ? taken.together_per_s : taken.alone_per_s;
  if (rate === null || inputs.requests_per_month === null) return null;
  const busy = inputs.requests_per_month / (rate * rules.hours_per_month * 3600);
  let filled = 0;
  if (sized && inputs.room_gib) {
    const left = inputs.room_gib * 2 ** 30 - (taken.resident_base_bytes ?? 0), each = taken.resident_bytes;
    if (left < each) return null;
    filled = each ? Math.ceil(inputs.tenants / Math.floor(left / each)) : 1;
  }
  return Math.max(1, Math.ceil(busy), filled);
}

// Bills by arm, of arms whose total leaves out no more than any other's.
function years(data, inputs) {
  const bills = data.taken.map((one) => bill(one, inputs, data.rules));
  const least = bills.length ? [...bills[0].missing].filter((what) => bills.every((one) => one.missing.has(what))) : [];
  return new Map(bills.filter((one) => one.missing.size === least.length && one.priced).map((one) => [one.arm, one]));
}

// What is known of each arm by criterion, at these prices and volumes.
function amountsOf(data, use, inputs) {
  const yearly = use.scales.some((scale) => scale.name === "year_usd") || "year_usd" in use.limits;
  const year = yearly ? years(data, inputs) : new Map();
  return data.arms.map((arm) => {
    const own = new Map(Object.entries(arm.measured));
    if (own.has("train_s") && inputs.usd_per_hour !== null) {
      own.set("cost_usd", own.get("train_s") / 3600 * inputs.usd_per_hour);
    }
    if (year.has(arm.name)) own.set("year_usd", year.get(arm.name).usd);
    for (const [name, scores] of Object.entries(use.opinions)) {
      const said = new Map(Object.entries(scores));
      const score = said.get(arm.name) ?? said.get(arm.method);
      if (score !== undefined) own.set(name, score);
    }
    return {arm, own, by_length: year.get(arm.name)?.by_length ?? 0};
  });
}

// Arms that no limit rules out and that every criterion knows, and the others with the reason.
function enter(data, use, inputs) {
  const byQuality = use.scales.some((scale) => scale.name === "quality");
  const limits = Object.entries(use.limits).filter(([name, at]) => name.endsWith("_usd") || data.limits[name] !== at);
  const entered = [], out = [];
  for (const one of amountsOf(data, use, inputs)) {
    const {weighed} = one.arm;
    if (weighed === null || (weighed !== "always" && !byQuality)) continue;
    const over = limits.filter(([name, at]) => !(one.own.get(name) <= at)).map(([name]) => name);
    const lacking = use.scales.filter((scale) => !one.own.has(scale.name)).map((scale) => scale.name);
    if (over.length) out.push({arm: one.arm, over});
    else if (lacking.length) out.push({arm: one.arm, lacking});
    else entered.push(one);
  }
  return {entered, out};
}

// Between 0 at the anchor `worst` and 1 at `best`.
function valueOf({worst, best, log}, x) {
  const part = log
    ? Math.log(Math.max(x, Math.min(worst, best)) / worst) / Math.log(best / worst)
    : (x - worst) / (best - worst);
  return Math.min(Math.max(part, 0), 1);
}

function scored(values, shares) {
  return values.map((row) => row.reduce((total, value, j) => total + value * shares[j], 0));
}

function highest(scores) {
  return scores.indexOf(Math.max(...scores));
}

// Drawn amounts by arm and criterion: an array where they vary, else a number.
function drawnAmounts(data, use, entered) {
  return entered.map(({arm, own, by_length}) => use.scales.map(({name}) => {
    const amount = own.get(name);
    if (name !== "year_usd") return data.draws.get(name)?.get(arm.name) ?? amount;
    const length = data.draws.get("run_length")?.get(arm.name);
    return length && by_length ? length.map((part) => amount + by_length * (part - 1)) : amount;
  }));
}

// The share of draws in which each arm is first; ties are shared.
function firstShares(data, use, shares, entered) {
  const amounts = drawnAmounts(data, use, entered);
  const varies = amounts.some((row) => row.some((amount) => typeof amount !== "number"));
  const count = varies ? data.drawn : 1, first = entered.map(() => 0);
  const fixed = amounts.map((row) => row.map((amount, j) =>
    typeof amount === "number" ? shares[j] * valueOf(use.scales[j], amount) : null));
  for (let b = 0; b < count; b += 1) {
    const scores = amounts.map((row, a) => row.reduce((total, amount, j) =>
      total + (fixed[a][j] ?? shares[j] * valueOf(use.scales[j], amount[b])), 0));
    const bar = Math.max(...scores) - data.rules.close;
    const tied = scores.filter((score) => score >= bar).length;
    scores.forEach((score, a) => { if (score >= bar) first[a] += 1 / tied; });
  }
  return first.map((share) => share / count);
}

// For each criterion the nearest weights, down and up, at which another arm is first, the others kept in ratio.
function weightFlips(values, shares) {
  const found = [], scores = scored(values, shares), top = highest(scores);
  for (let j = 0; shares.length > 1 && j < shares.length; j += 1) {
    if (shares[j] >= 1) continue;
    const rest = scores.map((score, a) => (score - values[a][j] * shares[j]) / (1 - shares[j]));
    let below = null, above = null;
    rest.forEach((score, k) => {
      const lead = rest[top] - score, gain = values[top][j] - values[k][j], at = lead / (lead - gain);
      if (k === top || !(at > 0 && at < 1)) return;
      if (at < shares[j]) below = below && below.at > at ? below : {at, to: k};
      else above = above && above.at <= at ? above : {at, to: k};
    });
    found.push(...[below, above].filter(Boolean).map((flip) => ({criterion: j, now: shares[j], ...flip})));
  }
  return found;
}

// The rival that some weights within a quarter of these put first, and the criterion that does most of it.
function shaken(values, shares, {shake, close}) {
  const top = highest(scored(values, shares));
  let worst = null;
  values.forEach((row, k) => {
    if (k === top) return;
    const leads = row.map((value, j) => (values[top][j] - value) * shares[j]), sizes = leads.map(Math.abs);
    const least = leads.reduce((a, b) => a + b, 0) - shake * sizes.reduce((a, b) => a + b, 0);
    if (worst === null || least < worst.least) worst = {least, rival: k, criterion: highest(sizes)};
  });
  return worst !== null && worst.least < -close ? worst : null;
}

// Numbers from one to another, evenly or by equal factors.
function spaced(from, to, count, geometric) {
  const at = (i) => geometric ? from * (to / from) ** (i / (count - 1)) : from + (to - from) * i / (count - 1);
  return Array.from({length: count}, (_, i) => i === 0 ? from : i === count - 1 ? to : at(i));
}

function even(x) {
  const low = Math.floor(x);
  return x - low === 0.5 ? low + low % 2 : Math.round(x);
}

// The nearest prices or volumes, down and up, at which another arm is first: a grid each way, then halving.
function inputFlips(scoresAt, now, {least, whole, rules}) {
  const most = rules.farthest * Math.max(now, 1), top = highest(scoresAt(now)), found = [];
  const overtaken = (x) => { const here = scoresAt(x); return Math.max(...here) > here[top] + rules.close; };
  const grids = [spaced(now, least, rules.steps, false), [now, ...spaced(now || most / 1e6, most, rules.steps, true)]];
  for (const grid of grids) {
    const steps = whole ? [...new Set(grid.map(even))] : grid;
    const end = steps.findIndex((x, i) => i > 0 && overtaken(x));
    if (end < 0) continue;
    let kept = steps[end - 1], lost = steps[end];
    while (Math.abs(lost - kept) > (whole ? 1 : 1e-12 * Math.max(Math.abs(lost), Math.abs(kept)))) {
      const middle = whole ? Math.floor((kept + lost) / 2) : (kept + lost) / 2;
      if (middle === kept || middle === lost) break;
      if (overtaken(middle)) lost = middle;
      else kept = middle;
    }
    found.push({now, at: lost, to: highest(scoresAt(whole ? lost : lost + 1e-9 * (lost - now)))});
  }
  return found;
}

function flipsOf(data, use, shares, inputs, entered, values) {
  const found = weightFlips(values, shares).map((flip) => ({what: `weight of ${use.scales[flip.criterion].name}`, ...flip}));
  const at = (name) => use.scales.findIndex((scale) => scale.name === name), run = at("cost_usd"), year = at("year_usd");
  if (entered.length < 2 || (run < 0 && year < 0)) return found;
  for (const [name, what] of Object.entries(data.rules.inputs)) {
    const now = inputs[name];
    if (now === null || (name !== "usd_per_hour" && year < 0)) continue;
    const scoresAt = (x) => {
      const moved = values.map((row) => [...row]);
      if (year >= 0) {
        const usd = years(data, {...inputs, [name]: x});
        if (!entered.every(({arm}) => usd.has(arm.name))) return scored(values, shares);
        entered.forEach(({arm}, a) => { moved[a][year] = valueOf(use.scales[year], usd.get(arm.name).usd); });
      }
      if (run >= 0 && name === "usd_per_hour") {
        entered.forEach(({own}, a) => { moved[a][run] = valueOf(use.scales[run], own.get("train_s") / 3600 * x); });
      }
      return scored(moved, shares);
    };
    const whole = name === "tenants";
    const flips = inputFlips(scoresAt, now, {least: whole ? 1 : 0, whole, rules: data.rules});
    found.push(...flips.map((flip) => ({what, input: name, ...flip})));
  }
  return found;
}

// The recommendation or why there is none, arms by score with the share of draws in which each is first, and flips.
function weigh(data, use, shares, inputs) {
  const {entered, out} = enter(data, use, inputs);
  if (!entered.length) return {recommendation: null, reason: {none: true}, ranking: [], flips: [], out};
  const values = entered.map(({own}) => use.scales.map((scale) => valueOf(scale, own.get(scale.name))));
  const scores = scored(values, shares), first = firstShares(data, use, shares, entered);
  const order = scores.map((_, a) => a).sort((a, b) => scores[b] - scores[a] || a - b), top = order[0];
  const moved = shaken(values, shares, data.rules), named = (a) => entered[a].arm;
  let reason = null;
  if (first[top] < data.rules.sure) reason = {first: first[top]};
  else if (moved) reason = {rival: named(moved.rival), criterion: use.scales[moved.criterion]};
  return {
    recommendation: reason === null ? named(top) : null,
    reason,
    ranking: order.map((a) => ({arm: named(a), score: scores[a], first: first[a], amounts: entered[a].own})),
    flips: flipsOf(data, use, shares, inputs, entered, values).map((flip) => ({...flip, to: named(flip.to)})),
    out,
  };
}

// Draws as arrays, from base64 of little-endian floats of 32 bits.
function unpacked(data) {
  const array = (text) => {
    const view = new DataView(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
    return Float64Array.from({length: view.byteLength / 4}, (_, b) => view.getFloat32(4 * b, true));
  };
  const each = (named, made) => new Map(Object.entries(named).map(([name, one]) => [name, made(one)]));
  return {...data, draws: each(data.draws, (byArm) => each(byArm, array))};
}
