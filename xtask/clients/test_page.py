#!/usr/bin/env python3
"""The chat page in headless Chromium. Usage: test_page.py --url http://127.0.0.1:PORT

With --screenshot FILE and one or more --ask QUESTION it writes a picture of that conversation and tests nothing.
"""

import argparse
import json
import os
import pathlib
import shutil
import tempfile
import urllib.parse

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

import checks
from checks import expect, expect_equal

WAIT_S = 60

# Lets the first piece of an answer through and holds what follows until `window.openGate()` or until the page gives the
# request up: what a slow model would do, whatever the speed of this one.
HOLD_ANSWERS = """
const direct = window.fetch;
window.restoreFetch = () => { window.fetch = direct; };
window.fetch = async (address, options) => {
  const response = await direct(address, options);
  if (address !== '/chat/stream' || !response.ok) return response;
  window.aborted = false;
  const opened = new Promise((resolve) => { window.openGate = resolve; });
  const aborted = new Promise((resolve, reject) => {
    options.signal.addEventListener('abort', () => {
      window.aborted = true;
      reject(new DOMException('aborted', 'AbortError'));
    });
  });
  aborted.catch(() => {});
  async function* held() {
    let waiting = '';
    let pieces = 0;
    for await (const bytes of response.body.pipeThrough(new TextDecoderStream())) {
      waiting += bytes;
      for (let end; (end = waiting.indexOf('\\n\\n')) >= 0; ) {
        const event = waiting.slice(0, end + 2);
        waiting = waiting.slice(end + 2);
        if (pieces > 0) await Promise.race([opened, aborted]);
        if (event.startsWith('event: text')) pieces += 1;
        yield new TextEncoder().encode(event);
      }
    }
  }
  const events = held();
  const body = new ReadableStream({
    async pull(controller) {
      const { value, done } = await events.next();
      if (done) controller.close();
      else controller.enqueue(value);
    },
  });
  return new Response(body, response);
};
"""

# Marks what was said before, so that what a question adds can be told from it.
MARK_OLD = "document.querySelectorAll('.message').forEach(message => { message.dataset.old = 'true'; });"
NEW_QUESTION = ".message.user:not([data-old]) .content"
NEW_ANSWER = ".message.assistant:not([data-old]) .content"

QUESTION = "Tell me a very long story about the wind and the sea."


def start_browser(profile):
    """Chromium that reaches nothing by itself, with the logs that the tests read."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--lang=en",
        "--window-size=1200,800",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    return webdriver.Chrome(options=options, service=service)


class Page:
    """The page under test and what a person does on it."""

    def __init__(self, browser, url):
        self.browser = browser
        self.url = url
        # Every address that any request of the page went to, filled by drain_logs.
        self.requested = []
        self.console = []

    def open(self):
        self.browser.get(f"{self.url}/")
        self.wait(lambda: self.find("#prompt").is_displayed(), "the prompt is shown")
        self.wait(lambda: self.find("#model").is_enabled(), "a model is there")

    def find(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, condition, what):
        # An element may vanish while it is looked at, for instance when the page is loaded anew.
        wait = WebDriverWait(
            self.browser, WAIT_S, poll_frequency=0.05, ignored_exceptions=[StaleElementReferenceException]
        )
        wait.until(lambda _: condition(), f"waiting until {what}")

    def is_idle(self):
        """No answer is being written: stop is hidden, and there is a button to send."""
        return not self.find("#stop").is_displayed() and self.find("#send").is_displayed()

    def begin(self, text, send):
        """Types a question, sends it by calling `send`, and waits until it and the place of its answer are shown."""
        self.browser.execute_script(MARK_OLD)
        prompt = self.find("#prompt")
        prompt.clear()
        prompt.send_keys(text)
        send()
        self.wait(lambda: self.all(NEW_QUESTION), "the question is shown")
        self.wait(lambda: self.all(NEW_ANSWER), "an answer begins")

    def ask(self, text):
        """Sends a question with the button and waits for the end of the answer."""
        self.begin(text, lambda: self.find("#send").click())
        self.wait(self.is_idle, "the answer ends")

    def answer(self):
        return self.find(NEW_ANSWER).text.strip()

    def drain_logs(self):
        """Collects the logs; each entry is handed out by the browser only once."""
        for entry in self.browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
        self.console += [entry for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_the_page_opens_with_its_parts(page):
    page.open()
    for selector in ("#prompt", "#send", "#model", "#new-chat"):
        expect(page.find(selector).is_displayed(), f"{selector} is not shown")
    expect(page.all("#messages"), "there is no #messages")
    expect(page.is_idle(), "stop is offered before anything was asked")
    expect(page.browser.title.strip(), "the page has no title")


def test_the_model_picker_lists_the_models(page):
    page.wait(lambda: len(Select(page.find("#model")).options) > 0, "models are listed")
    names = [option.get_attribute("value") for option in Select(page.find("#model")).options]
    expect(all(names), f"an entry has no name: {names}")
    Select(page.find("#model")).select_by_index(len(names) - 1)
    expect_equal(page.find("#model").get_attribute("value"), names[-1], "chosen model")
    Select(page.find("#model")).select_by_index(0)


def begin_held_answer(page, question):
    """Asks a question whose answer is held after its first piece, and waits for that piece."""
    page.browser.execute_script(HOLD_ANSWERS)
    page.begin(question, lambda: page.find("#send").click())
    page.wait(page.answer, "the beginning of the answer is shown")
    expect(not page.is_idle(), "stop is not offered while an answer is written")


def test_an_answer_is_shown_before_it_ends(page):
    begin_held_answer(page, QUESTION)
    expect_equal(page.find(NEW_QUESTION).text.strip(), QUESTION, "question shown")
    page.browser.execute_script("window.openGate(); window.restoreFetch();")
    page.wait(page.is_idle, "the answer ends")
    expect(page.answer(), "the whole answer is empty")


def test_enter_sends_and_the_prompt_is_emptied(page):
    page.begin("What is the sea?", lambda: page.find("#prompt").send_keys(Keys.ENTER))
    expect_equal(page.find("#prompt").get_attribute("value"), "", "prompt after sending")
    page.wait(page.is_idle, "the answer ends")


def test_html_in_a_question_is_shown_as_text(page):
    page.ask("<img src=x onerror=\"document.title='broken'\"><b>bold</b>")
    expect_equal(len(page.all(".message.user img, .message.user b")), 0, "number of elements made from text")
    expect("<b>bold</b>" in page.find(NEW_QUESTION).text, "the question is not shown as it was typed")
    expect(page.browser.title != "broken", "a question ran as a script")


def test_stop_ends_the_answer(page):
    begin_held_answer(page, QUESTION)
    text = page.answer()
    page.find("#stop").click()
    page.wait(page.is_idle, "the answer ends")
    expect(page.browser.execute_script("return window.aborted"), "stop leaves the request open")
    expect(page.answer().startswith(text), f"stop changed {text!r} into {page.answer()!r}")
    page.browser.execute_script("window.restoreFetch();")
    page.ask("And now?")
    # What a half answer leads a small model to say, if anything, is not for a test to know.
    expect(not page.all(".message.failed"), "the question after a stopped answer is not answered")


def test_a_new_chat_is_empty(page):
    expect(page.all("#messages .message"), "there is nothing to clear")
    page.find("#new-chat").click()
    page.wait(lambda: not page.all("#messages .message.user"), "the messages are gone")
    expect(page.is_idle(), "a new chat begins with an answer")


def test_the_language_can_be_switched(page):
    def language():
        return page.find("html").get_attribute("lang")[:2]

    def switch():
        chooser = page.find("#language")
        if chooser.tag_name == "select":
            Select(chooser).select_by_value("fr" if language() == "en" else "en")
        else:
            chooser.click()

    first, first_text = language(), page.find("#new-chat").text
    expect(first in ("en", "fr"), f"the page is in {first!r}")
    switch()
    page.wait(lambda: language() != first, "the language changes")
    page.wait(lambda: page.find("#new-chat").text != first_text, "the buttons are translated")
    switch()
    page.wait(lambda: language() == first, "the language changes back")
    expect_equal(page.find("#new-chat").text, first_text, "button after switching back")


def test_the_page_works_on_a_narrow_screen(page):
    page.browser.set_window_size(420, 800)
    page.ask("Hello?")
    width = page.browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
    expect(width <= 0, f"the page is {width} pixels wider than the window")
    page.browser.set_window_size(1200, 800)


def test_nothing_was_asked_of_another_host(page):
    page.drain_logs()
    expect(f"{page.url}/" in page.requested, "the log of requests lacks the page itself")
    own = urllib.parse.urlsplit(page.url).netloc
    addresses = [urllib.parse.urlsplit(url) for url in page.requested]
    # The browser's own empty tab loads chrome:// addresses, which lie in its program.
    remote = [address for address in addresses if address.scheme in ("http", "https", "ws", "wss")]
    foreign = [address.geturl() for address in remote if address.netloc != own]
    expect_equal(foreign, [], "requests to other hosts")


def test_the_console_has_no_errors(page):
    page.drain_logs()
    expect_equal([entry["message"] for entry in page.console], [], "errors on the console")


def take_screenshot(page, path, model, questions):
    """A picture of a short conversation, for the README."""
    page.open()
    page.find("#new-chat").click()
    if model is not None:
        Select(page.find("#model")).select_by_value(model)
    for question in questions:
        page.ask(question)
    animations = "return document.getAnimations().filter(a => a.playState === 'running').length"
    page.wait(lambda: page.browser.execute_script(animations) == 0, "nothing moves")
    path.parent.mkdir(parents=True, exist_ok=True)
    page.browser.save_screenshot(str(path))
    print(f"wrote {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--screenshot", type=pathlib.Path, help="write a picture of a conversation here")
    parser.add_argument("--ask", action="append", default=[], help="a question of the pictured conversation")
    parser.add_argument("--model", help="the model of the pictured conversation, else the first")
    arguments = parser.parse_args()
    # Selenium looks for newer drivers on the network unless told not to.
    os.environ["SE_OFFLINE"] = "true"
    os.environ["SE_AVOID_STATS"] = "true"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = start_browser(profile)
        try:
            page = Page(browser, arguments.url.rstrip("/"))
            if arguments.screenshot:
                return take_screenshot(page, arguments.screenshot, arguments.model, arguments.ask)
            checks.run([(test, (page,)) for test in checks.tests_of(globals())])
        finally:
            browser.quit()


if __name__ == "__main__":
    main()
