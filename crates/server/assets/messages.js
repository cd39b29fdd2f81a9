// The entries of the conversation.

import { follow } from "./scroll.js";

const list = document.getElementById("messages");
const announce = document.getElementById("announce");

function element(name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function entry(kind, speaker) {
  const item = element("li", `message ${kind}`);
  item.append(element("span", "unseen", speaker), element("div", "content"));
  list.append(item);
  return item;
}

export function clear() {
  list.replaceChildren();
  announce.textContent = "";
}

export function say(text) {
  announce.textContent = text;
}

/// Adds what the person wrote.
export function addQuestion(text, texts) {
  const item = entry("user", `${texts.you} :`);
  item.querySelector(".content").textContent = text;
  return item;
}

/// An answer, growing block by block.
export class Answer {
  constructor(texts) {
    this.texts = texts;
    this.item = entry("assistant", `${texts.title} :`);
    this.content = this.item.querySelector(".content");
    this.blocks = [];
    this.text = "";
  }

  /// Shows that the answer is on its way.
  wait() {
    this.item.classList.add("streaming");
    this.item.setAttribute("aria-busy", "true");
    const dots = element("span", "pulse");
    dots.append(element("i", ""), element("i", ""), element("i", ""));
    this.content.append(dots);
  }

  /// Shows a block; the HTML comes sanitised from the server. Once the next block is there, a block is finished.
  setBlock(index, html) {
    this.content.querySelector(":scope > .pulse")?.remove();
    while (this.blocks.length <= index) {
      this.finishBlock();
      const block = element("div", "block");
      this.blocks.push({ block, html: "" });
      this.content.append(block);
    }
    this.blocks[index].html = html;
    this.blocks[index].block.innerHTML = html;
    follow();
  }

  /// Gives code its button and tells screen readers what the block says.
  finishBlock() {
    const last = this.blocks.at(-1);
    if (!last || last.finished) return;
    last.finished = true;
    for (const pre of last.block.querySelectorAll("pre")) {
      const frame = element("div", "frame");
      pre.replaceWith(frame);
      pre.tabIndex = 0;
      frame.append(pre, this.copyButton("copy", this.texts.copy_code, () => pre.textContent));
    }
    if (this.item.classList.contains("streaming")) say(last.block.textContent);
  }

  /// Ends the answer: `note` is a remark, `figures` a measurement, `retry` what the button for another try does.
  finish({ note, figures, retry }) {
    this.content.querySelector(":scope > .pulse")?.remove();
    this.finishBlock();
    this.item.classList.remove("streaming");
    this.item.removeAttribute("aria-busy");
    const tools = element("div", "tools");
    if (this.text) tools.append(this.copyButton("quiet", this.texts.copy_answer, () => this.text));
    if (retry) {
      const button = element("button", "quiet retry", this.texts.retry);
      button.type = "button";
      button.addEventListener("click", retry);
      tools.append(button);
    }
    if (figures) tools.append(element("span", "figures", figures));
    if (note) tools.append(element("span", "note", note));
    this.item.append(tools);
    follow();
  }

  /// Shows that there is no answer, and why.
  fail(message, detail) {
    const box = element("div", "error", message);
    box.setAttribute("role", "alert");
    if (detail) {
      const small = element("small", "", detail);
      small.lang = "en";
      box.append(small);
    }
    this.content.after(box);
  }

  copyButton(className, label, text) {
    const button = element("button", className, this.texts.copy);
    button.type = "button";
    button.setAttribute("aria-label", label);
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(text());
      button.textContent = this.texts.copied;
      say(this.texts.copied);
      setTimeout(() => { button.textContent = this.texts.copy; }, 1600);
    });
    return button;
  }
}

/// Draws the line between what the model no longer reads, the first messages, and the rest.
export function markLeftOut(count, text) {
  list.querySelector(":scope > .left-out")?.remove();
  const line = element("li", "left-out", text);
  list.querySelectorAll(":scope > .message:not(.failed)")[count].before(line);
}

/// Only the last answer can be tried again.
export function removeOldRetries() {
  for (const button of list.querySelectorAll(".retry")) button.remove();
}
