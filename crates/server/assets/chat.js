// The conversation: what was said, the answer in progress, and the controls.

import { events } from "./events.js";
import { Answer, addQuestion, clear, markLeftOut, removeOldRetries, say } from "./messages.js";
import { toEnd } from "./scroll.js";

const texts = JSON.parse(document.body.dataset.texts);
const prompt = document.getElementById("prompt");
const send = document.getElementById("send");
const stop = document.getElementById("stop");
const model = document.getElementById("model");
const empty = document.getElementById("empty");
const starting = document.getElementById("starting");

/// Where the conversation outlives a reload of the page, in this tab alone.
const STORE = "conversation";
/// Time between two questions whether a model is there, in milliseconds.
const POLL_MS = 1500;

/// Turns: {role, content, blocks}, where blocks is the HTML of an answer.
let turns = [];
/// The request in progress.
let running = null;

function save() {
  try {
    sessionStorage.setItem(STORE, JSON.stringify({ turns, model: model.value }));
  } catch {
    // Storage may be full or forbidden; the conversation is still on the page.
  }
}

function isReady() {
  return !model.disabled;
}

function refresh() {
  send.hidden = running !== null;
  stop.hidden = running === null;
  send.disabled = !isReady() || prompt.value.trim() === "";
  empty.hidden = !isReady() || turns.length > 0 || document.querySelector(".message") !== null;
  starting.hidden = isReady();
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

function ask(question) {
  if (running || !isReady() || question.trim() === "") return;
  prompt.value = "";
  turns.push({ role: "user", content: question });
  const asked = addQuestion(question, texts);
  toEnd();
  reply(asked);
}

/// Asks the server for the answer to the last turn.
async function reply(asked) {
  removeOldRetries();
  const answer = new Answer(texts);
  const request = new AbortController();
  running = request;
  answer.wait();
  say(texts.answering);
  refresh();
  toEnd();
  let outcome;
  try {
    outcome = await receive(answer, request.signal);
  } catch {
    outcome = request.signal.aborted ? { note: texts.stopped } : { error: texts.error_network };
  }
  if (running !== request) return;
  running = null;
  conclude(answer, asked, outcome);
  save();
  refresh();
}

/// Reads the events of an answer until it ends; returns how it ended.
async function receive(answer, signal) {
  const messages = turns.map(({ role, content }) => ({ role, content }));
  const response = await fetch("/chat/stream", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: model.value, messages }),
    signal,
  });
  if (!response.ok) return failure((await response.json()).error);
  for await (const { name, data } of events(response)) {
    if (name === "left_out") markLeftOut(data.n_messages, texts.left_out);
    else if (name === "block") answer.setBlock(data.block, data.html);
    else if (name === "text") answer.text += data.text;
    else if (name === "done") return complete(answer, data);
    else if (name === "error") return failure(data.error);
  }
  return { error: texts.error_network };
}

function complete(answer, data) {
  const figures = [`${data.usage.completion_tokens} ${texts.tokens}`];
  if (data.tokens_per_s) {
    const speed = data.tokens_per_s.toLocaleString(texts.lang, { maximumSignificantDigits: 3 });
    figures.push(`${speed} ${texts.tokens_per_s}`);
  }
  let note = data.finish_reason === "length" ? texts.length : undefined;
  if (answer.text.trim() === "") note = texts.empty_answer;
  say(texts.answered);
  return { note, figures: figures.join(" · ") };
}

function failure(error) {
  if (error.code === "context_length_exceeded") return { error: texts.error_context, detail: error.message };
  if (error.code === "queue_full") return { error: texts.error_busy };
  return { error: texts.error_other, detail: error.message };
}

/// Ends an answer on the page and decides what of it stays in the conversation.
function conclude(answer, asked, { note, figures, error, detail }) {
  const retry = () => {
    answer.item.remove();
    asked.classList.remove("failed");
    if (turns.at(-1)?.role === "assistant") turns.pop();
    if (turns.at(-1)?.role !== "user") turns.push({ role: "user", content: asked.querySelector(".content").textContent });
    reply(asked);
  };
  if (answer.text.trim() !== "") {
    turns.push({ role: "assistant", content: answer.text, blocks: answer.blocks.map(({ html }) => html) });
  } else {
    // A question without an answer would make the next request wrong: it stays on the page and out of the conversation.
    turns.pop();
    asked.classList.add("failed");
    answer.item.classList.add("failed");
  }
  if (error) answer.fail(error, detail);
  answer.finish({ note, figures, retry });
}

function newChat() {
  running?.abort();
  running = null;
  turns = [];
  clear();
  save();
  refresh();
  prompt.focus();
}

function restore() {
  let kept;
  try {
    kept = JSON.parse(sessionStorage.getItem(STORE));
  } catch {
    return;
  }
  if (!kept) return;
  if ([...model.options].some(({ value }) => value === kept.model)) model.value = kept.model;
  turns = kept.turns;
  for (const turn of turns) {
    if (turn.role === "user") {
      addQuestion(turn.content, texts);
    } else {
      const answer = new Answer(texts);
      answer.text = turn.content;
      turn.blocks.forEach((html, index) => answer.setBlock(index, html));
      answer.finish({});
    }
  }
  if (turns.length) toEnd();
}

/// Waits for a model, showing what the server says meanwhile.
async function awaitModel() {
  while (!isReady()) {
    try {
      const status = await (await fetch("/chat/status")).json();
      document.getElementById("starting-detail").textContent = status.detail;
      if (status.models.length > 0) {
        model.replaceChildren(...status.models.map((name) => new Option(name, name)));
        model.disabled = false;
      }
    } catch {
      document.getElementById("starting-detail").textContent = texts.error_network;
    }
    if (!isReady()) await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  restore();
  refresh();
}

document.getElementById("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  ask(prompt.value);
});
prompt.addEventListener("input", refresh);
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask(prompt.value);
  }
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
stop.addEventListener("click", () => {
  running?.abort();
  prompt.focus();
});
model.addEventListener("change", save);
document.getElementById("new-chat").addEventListener("click", newChat);
for (const example of document.querySelectorAll(".example")) {
  example.addEventListener("click", () => ask(example.textContent));
}

refresh();
awaitModel();
