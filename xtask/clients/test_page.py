#!/usr/bin/env python3
"""The chat page in headless Chromium. Usage: test_page.py --url http://127.0.0.1:PORT [--screenshot FILE]"""

import argparse
import json
import os
import pathlib
import shutil
import tempfile
import time
import urllib.parse

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

import checks
from checks import expect, expect_equal

WAIT_S = 60

# Notes the length of the newest answer whenever it changes, from before the question is sent.
WATCH = """
window.seen = [];
const list = document.querySelector('#messages');
new MutationObserver(() => {
  const answers = list.querySelectorAll('.message.assistant:not([data-old]) .content');
  const length = answers.length ? answers[answers.length - 1].textContent.trim().length : 0;
  if (length !== window.seen[window.seen.length - 1]) window.seen.push(length);
}).observe(list, {childList: true, subtree: true, characterData: true});
"""

# Presses stop once the answer has begun, or soon after it could have; a small model may be done within milliseconds.
STOP_SOON = """
window.stopped = false;
let offered = 0;
const timer = setInterval(() => {
  const stop = document.querySelector('#stop');
  if (stop.offsetParent === null || stop.disabled) return;
  offered += 1;
  const answer = document.querySelector('.message.assistant:not([data-old]) .content');
  if (offered < 40 && !(answer && answer.textContent.trim())) return;
  window.stopped = true;
  clearInterval(timer);
  stop.click();
}, 1);
"""

# Marks what was said before, so that what a question adds can be told from it.
MARK_OLD = "document.querySelectorAll('.message').forEach(message => { message.dataset.old = 'true'; });"
NEW_QUESTION = ".message.user:not([data-old]) .content"
NEW_ANSWER = ".message.assistant:not([data-old]) .content"

# Questions that a small model is asked in turn, until one gets an answer long enough for what is tested.
QUESTIONS = (
    "Bonjour, raconte-moi une longue histoire.",
    "Tell me a very long story about the wind and the sea.",
    "Write down everything you know, and then write it once more.",
)


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


def test_an_answer_is_streamed(page):
    page.browser.execute_script(WATCH)
    for question in QUESTIONS:
        page.browser.execute_script("window.seen = [];")
        page.ask(question)
        expect_equal(page.find(NEW_QUESTION).text.strip(), question, "question shown")
        lengths = [length for length in page.browser.execute_script("return window.seen") if length > 0]
        if len(lengths) >= 2:
            return
    raise AssertionError(f"each answer came in one piece; the last: {page.answer()!r}, lengths {lengths}")


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
    page.browser.execute_script(STOP_SOON)
    for question in QUESTIONS:
        page.ask(question)
        if page.browser.execute_script("return window.stopped"):
            break
    else:
        raise AssertionError("every answer ended before stop could be pressed")
    text = page.answer()
    time.sleep(1)
    expect_equal(page.answer(), text, "answer one second after stop")
    page.ask("And now?")
    expect(page.answer(), "the question after a stopped answer has no answer")


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


def take_screenshot(page, path):
    """A picture of a short conversation, for the README."""
    page.open()
    page.find("#new-chat").click()
    page.ask("Bonjour ! Qui es-tu ?")
    page.ask("Tell me a short story.")
    path.parent.mkdir(parents=True, exist_ok=True)
    page.browser.save_screenshot(str(path))
    print(f"wrote {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--screenshot", type=pathlib.Path, help="also write a picture of a conversation here")
    arguments = parser.parse_args()
    # Selenium looks for newer drivers on the network unless told not to.
    os.environ["SE_OFFLINE"] = "true"
    os.environ["SE_AVOID_STATS"] = "true"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = start_browser(profile)
        try:
            page = Page(browser, arguments.url.rstrip("/"))
            if arguments.screenshot:
                take_screenshot(page, arguments.screenshot)
            checks.run([(test, (page,)) for test in checks.tests_of(globals())])
        finally:
            browser.quit()


if __name__ == "__main__":
    main()
