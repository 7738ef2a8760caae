"use strict";
// Texts come from models and from whoever wrote the rows: they are set as text alone, never as markup.
const token = location.hash.slice(1);
const by = (id) => document.getElementById(id);
const PAIRS = [[1, "Answer 1 is better"], [2, "Answer 2 is better"], [0, "Neither is better"]];
const POINTS = Array.from({ length: 10 }, (_, n) => [n + 1, String(n + 1)]);
let seat = null; // who rates, what kind, and what was said to each question, null where nothing yet
let number = 0;
let busy = false;

async function ask(what, content) {
  let answer;
  try {
    answer = await fetch(`/ask/${what}`, {
      method: "POST",
      headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
      body: JSON.stringify(content),
    });
  } catch {
    throw new Error("The page's program does not answer: your last click was not saved. Start it again with tunetrial rate.");
  }
  const told = await answer.json().catch(() => ({ error: `The program answered with status ${answer.status}.` }));
  if (!answer.ok) throw new Error(told.error);
  return told;
}

async function attempt(act) {
  if (busy) return;
  busy = true;
  by("alert").textContent = "";
  try {
    await act();
  } catch (fault) {
    by("alert").textContent = fault.message;
  } finally {
    busy = false;
  }
}

function screen(name, title) {
  for (const id of ["start", "ask", "end"]) by(id).hidden = id !== name;
  by("title").textContent = title;
  document.title = `${title} · tunetrial`;
  by("title").focus();
  window.scrollTo(0, 0);
}

// Characters without a shape get one, and those that turn the direction of all that follows are replaced.
function shown(text) {
  return text
    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/\u007f/g, "\u2421")
    .replace(/[\u0080-\u009f\u202a-\u202e\u2066-\u2069]/g, "\ufffd");
}

function put(box, text) {
  box.textContent = shown(text);
  box.scrollTop = 0;
  if (!text.trim()) box.replaceChildren(Object.assign(document.createElement("em"), { textContent: "no text" }));
}

function answerBox(text, place, of) {
  const part = document.createElement("div");
  const head = Object.assign(document.createElement("h2"), { id: `answer-${place}`, textContent: of > 1 ? `Answer ${place}` : "Answer" });
  const box = Object.assign(document.createElement("div"), { className: "text", dir: "auto", tabIndex: 0 });
  box.setAttribute("role", "region");
  box.setAttribute("aria-labelledby", head.id);
  put(box, text);
  part.append(head, box);
  return part;
}

function choice([said, words]) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: words });
  const key = Object.assign(document.createElement("kbd"), { textContent: String(said % 10) });
  key.setAttribute("aria-hidden", "true");
  if (seat.kind === "pairs" || said === 10) button.append(key);
  button.setAttribute("aria-pressed", String(seat.answered[number] === said));
  button.addEventListener("click", () => attempt(() => save(said)));
  return button;
}

const done = () => seat.answered.filter((said) => said !== null).length;

async function show(at) {
  const told = await ask("show", { rater: seat.rater, kind: seat.kind, number: at });
  number = at;
  by("criterion").textContent = seat.kind === "pairs" ? `Judge by this alone: ${seat.criterion}` : `Rate by this alone, 1 worst and 10 best: ${seat.criterion}`;
  by("progress").max = seat.answered.length;
  by("progress").value = done();
  put(by("request"), told.request);
  by("answers").replaceChildren(...told.texts.map((text, n) => answerBox(text, n + 1, told.texts.length)));
  by("choices").className = seat.kind;
  by("choices").replaceChildren(...(seat.kind === "pairs" ? PAIRS : POINTS).map(choice));
  by("back").disabled = number === 0;
  by("on").disabled = seat.answered[number] === null || number + 1 === seat.answered.length;
  screen("ask", `Question ${number + 1} of ${seat.answered.length}`);
}

async function save(said) {
  await ask("answer", { rater: seat.rater, kind: seat.kind, number, said });
  seat.answered[number] = said;
  by("status").textContent = `Saved. ${done()} of ${seat.answered.length} answered.`;
  const next = [...seat.answered.keys()].find((n) => n > number && seat.answered[n] === null) ?? seat.answered.indexOf(null);
  await (next === -1 ? finish() : show(next));
}

async function finish() {
  const told = await ask("end", { rater: seat.rater, kind: seat.kind });
  by("count").textContent = `${done()} of ${seat.answered.length} answered, all of them saved.`;
  by("agreement").replaceChildren(...told.agreement.map((line) => Object.assign(document.createElement("li"), { textContent: line })));
  by("resume").hidden = done() === seat.answered.length;
  screen("end", "Thank you");
}

async function begin() {
  const kind = document.querySelector("input[name=kind]:checked").value;
  seat = { kind, ...(await ask("begin", { rater: by("name").value, kind })) };
  by("status").textContent = done() ? `Welcome back. ${done()} of ${seat.answered.length} answered.` : "";
  const next = seat.answered.indexOf(null);
  await (next === -1 ? finish() : show(next));
}

function pressed(event) {
  const typing = event.target instanceof HTMLInputElement && event.target.type === "text";
  if (by("ask").hidden || !by("keys").checked || typing || event.repeat) return;
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const inText = event.target.classList.contains("text"); // where arrows scroll
  if (event.key === "ArrowLeft" && !inText) by("back").click();
  else if (event.key === "ArrowRight" && !inText) by("on").click();
  else if (/^[0-9]$/.test(event.key)) {
    const digit = Number(event.key);
    const said = seat.kind === "points" ? digit || 10 : digit;
    if (seat.kind === "pairs" && said > 2) return;
    attempt(() => save(said));
  } else return;
  event.preventDefault();
}

by("start").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(begin);
});
by("back").addEventListener("click", () => attempt(() => show(number - 1)));
by("on").addEventListener("click", () => attempt(() => show(number + 1)));
by("finish").addEventListener("click", () => attempt(finish));
by("resume").addEventListener("click", () => attempt(() => show(seat.answered.indexOf(null))));
by("again").addEventListener("click", () => screen("start", "Rate answers"));
document.addEventListener("keydown", pressed);
if (token) screen("start", "Rate answers");
else by("alert").textContent = "This address is not whole: open the one that tunetrial printed, with all that follows #.";
