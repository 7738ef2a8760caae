// The controls: what they say is text, whatever an arm is called. Without this script the page has none of them.
(() => {
  const root = document.getElementById("weigh"), data = unpacked(JSON.parse(document.getElementById("weighable").textContent));
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const SLIDING = {
    usd_per_hour: {label: "Price of a machine hour", said: dollars, least: 0},
    requests_per_month: {label: "Requests a month", said: plain, least: 0},
    tenants: {label: "Tenants", said: plain, least: 1},
  };
  const PAUSE_MS = 700, PER_DECADE = 100, DECADES = 3;
  let use, shares, inputs, controls = [], telling, told = "";

  function grouped(text) {
    const [whole, rest] = text.split(".");
    return (whole.length > 4 ? whole.replace(/\B(?=(\d{3})+$)/g, "\u202f") : whole) + (rest ? `.${rest}` : "");
  }
  function plain(x) { return grouped(String(Number(x.toPrecision(10)))); }
  function short(x) { return plain(Number(x.toPrecision(3))); }
  function dollars(x) { return `$${grouped(x >= 0.1 || x === 0 ? x.toFixed(2) : String(Number(x.toPrecision(2))))}`; }
  function percent(share) {
    if ((share > 0 && share < 0.005) || (share >= 0.995 && share < 1)) return share > 0.5 ? "over 99 %" : "under 1 %";
    return `${even(100 * share)} %`;
  }
  function make(tag, text = "", attributes = {}) {
    const node = document.createElement(tag);
    node.textContent = text;
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  }
  function armed(tag, arm, attributes) {
    const node = make(tag, "", attributes);
    node.append(make("bdi", arm.shown));
    return node;
  }

  // Values of a slider: what is asked for in the middle, by equal factors down and up, and the least there can be.
  function stops(now, least) {
    const whole = least === 1, found = new Set([least, now]);
    for (let i = -DECADES * PER_DECADE; i <= DECADES * PER_DECADE; i += 1) {
      const x = (now || 1) * 10 ** (i / PER_DECADE);
      found.add(Math.max(least, whole ? Math.round(x) : Number(x.toPrecision(3))));
    }
    return [...found].sort((a, b) => a - b);
  }

  // One labelled slider; `read` gives its position from the state, `write` the state from its position.
  function slider(id, label, {max, step, read, write, said}) {
    const row = make("div", "", {class: "slide"}), range = make("input", "", {type: "range", id, min: 0, max, step});
    const output = make("output", "", {for: id, "aria-live": "off"});
    row.append(make("label", label, {for: id}), output, range);
    const show = () => {
      range.value = read();
      output.textContent = said();
      range.setAttribute("aria-valuetext", said());
    };
    range.addEventListener("input", () => { write(Number(range.value)); refresh(); });
    controls.push(show);
    return row;
  }

  function weightSlider(j) {
    const scale = use.scales[j];
    const write = (share) => {
      const rest = 1 - shares[j];
      const others = rest > 1e-9 ? shares : use.scales.map((one) => one.share), whole = 1 - others[j];
      shares = shares.map((_, k) => k === j ? share : others[k] / whole * (1 - share));
    };
    const said = () => shares[j].toFixed(3);
    const label = `${scale.shown}${scale.opinion ? " (opinion)" : ""}`;
    return slider(`weigh-weight-${j}`, label, {max: 1, step: 0.001, read: () => shares[j], write, said});
  }

  function inputSlider(name) {
    const {label, said, least} = SLIDING[name], values = stops(use.inputs[name], least);
    return slider(`weigh-${name}`, label, {
      max: values.length - 1,
      step: 1,
      read: () => values.indexOf(inputs[name]),
      write: (at) => { inputs = {...inputs, [name]: values[at]}; },
      said: () => said(inputs[name]),
    });
  }

  // Prices and volumes on which something that is weighed, or limited, depends.
  function moving() {
    const on = (name) => name in use.limits || use.scales.some((scale) => scale.name === name);
    const names = on("year_usd") ? Object.keys(SLIDING) : on("cost_usd") ? ["usd_per_hour"] : [];
    return names.filter((name) => use.inputs[name] !== null);
  }

  function reset() {
    shares = use.scales.map((scale) => scale.share);
    inputs = {...use.inputs};
    refresh();
  }

  function choose(index) {
    use = data.uses[index];
    controls = [];
    const names = moving(), alone = use.scales.length < 2;
    part("weights").replaceChildren(...(alone ? [] : use.scales.map((_, j) => weightSlider(j))));
    part("inputs").replaceChildren(...names.map(inputSlider));
    part("weights").parentElement.hidden = alone;
    part("inputs").parentElement.hidden = !names.length;
    part("still").hidden = names.length > 0;
    reset();
  }

  function because({recommendation, reason, ranking}) {
    if (recommendation) return `Use ${recommendation.shown}`;
    if (reason.none) return "No arm can be weighed here";
    const pick = ranking[0].arm.shown;
    if (reason.rival) {
      const moved = `the weight of ${reason.criterion.name} and others changes by a quarter`;
      return `No recommendation: ${pick} is not first if ${moved}, but ${reason.rival.shown} is`;
    }
    return `No recommendation: ${pick} is first in ${percent(reason.first)} of draws, ${100 * data.rules.sure} % is asked for`;
  }

  function standing({arm, score, first, amounts}, rank, costs) {
    const row = make("tr");
    row.append(make("td", rank + 1, {class: "n"}), armed("th", arm, {scope: "row"}));
    row.append(make("td", score.toFixed(3), {class: "n"}), make("td", percent(first), {class: "n"}));
    row.append(...costs.map((cost) => make("td", dollars(amounts.get(cost.name)), {class: "n"})));
    return row;
  }

  function outside({arm, over, lacking}) {
    const why = over ? `${over.join(", ")} is above its limit or not known` : `${lacking.join(", ")} is not known`;
    return make("li", `${arm.shown} is not weighed: ${why}.`);
  }

  function flipText({what, at, now, to}) {
    const from = Math.abs(now) < 1 ? short(now) : plain(now);
    return make("li", `Flips to ${to.shown} if the ${what} reaches ${short(at)} (now ${from}).`);
  }

  function refresh() {
    controls.forEach((show) => show());
    const found = weigh(data, use, shares, inputs), costs = use.scales.filter(({name}) => /^(cost|year)_usd$/.test(name));
    const settled = found.recommendation !== null, answer = because(found);
    part("answer").className = `chip ${settled ? "better" : "open"}`;
    part("answer").replaceChildren(make("span", settled ? "▲ " : "? ", {"aria-hidden": "true"}), answer);
    const heads = ["Rank", "Arm", "Score", "First in draws", ...costs.map((cost) => cost.shown)];
    part("heads").replaceChildren(...heads.map((head) => make("th", head, {scope: "col", class: head === "Arm" ? "" : "n"})));
    part("ranking").replaceChildren(...found.ranking.map((one, rank) => standing(one, rank, costs)));
    part("out").replaceChildren(...found.out.map(outside));
    const none = make("li", "No weight, price or volume puts another arm first, all else as it is.");
    part("flips").replaceChildren(...(found.flips.length ? found.flips.map(flipText) : [none]));
    const at = use.scales.map((scale, j) => `${scale.shown.toLowerCase()} ${shares[j].toFixed(3)}`);
    at.push(...moving().map((name) => `${SLIDING[name].label.toLowerCase()} ${SLIDING[name].said(inputs[name])}`));
    part("at").textContent = `${use.shown}, at ${at.join(", ")}.`;
    tell(answer, found.ranking[0]);
  }

  // For those who hear the page: what came of it, once nothing has moved for a while; not what it begins with.
  function tell(answer, top) {
    const how = top ? ` ${top.arm.shown} scores ${top.score.toFixed(3)}, first in ${percent(top.first)} of draws.` : "";
    const said = `${answer}.${how}`;
    clearTimeout(telling);
    if (told === "") told = said;
    telling = setTimeout(() => {
      if (said !== told) part("told").textContent = said;
      told = said;
    }, PAUSE_MS);
  }

  part("use").append(...data.uses.map((one, index) => make("option", one.shown, {value: index})));
  part("use").addEventListener("change", () => choose(part("use").selectedIndex));
  part("reset").addEventListener("click", reset);
  choose(0);
  root.hidden = false;
})();
