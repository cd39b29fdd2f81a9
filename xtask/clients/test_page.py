#!/usr/bin/env python3
"""The chat page in headless Chromium. Usage: test_page.py --url http://127.0.0.1:PORT [--screenshot FILE]"""

import argparse
import json
import os
import pathlib
import tempfile
import time
import urllib.parse

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

import checks
from checks import expect, expect_equal

WAIT_S = 60

# Counts how often the text of the messages grows, from before the question is sent.
WATCH = """
window.seen = [];
const list = document.querySelector('#messages');
new MutationObserver(() => {
  const answers = list.querySelectorAll('.message.assistant');
  const length = answers.length ? answers[answers.length - 1].textContent.length : 0;
  if (length !== window.seen[window.seen.length - 1]) window.seen.push(length);
}).observe(list, {childList: true, subtree: true, characterData: true});
"""

# Presses stop as soon as it can be pressed; a small model may be done within milliseconds.
STOP_AT_ONCE = """
window.stopped = false;
const timer = setInterval(() => {
  const stop = document.querySelector('#stop');
  if (stop && stop.offsetParent !== null && !stop.disabled) {
    window.stopped = true;
    clearInterval(timer);
    stop.click();
  }
}, 1);
"""


def start_browser(profile):
    """Chromium that reaches nothing by itself, with the logs that the tests read."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
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
    service = webdriver.ChromeService("/usr/bin/chromedriver")
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

    def find(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def wait(self, condition, what):
        WebDriverWait(self.browser, WAIT_S, poll_frequency=0.05).until(lambda _: condition(), f"waiting until {what}")

    def is_idle(self):
        """No answer is being written: stop is hidden or disabled, and sending is possible."""
        stop = self.find("#stop")
        return not (stop.is_displayed() and stop.is_enabled()) and self.find("#send").is_displayed()

    def type(self, text):
        prompt = self.find("#prompt")
        prompt.clear()
        prompt.send_keys(text)

    def ask(self, text):
        """Sends a question with the button and waits for the end of the answer."""
        before = len(self.all(".message.assistant"))
        self.type(text)
        self.find("#send").click()
        self.wait(lambda: len(self.all(".message.assistant")) > before, "an answer begins")
        self.wait(self.is_idle, "the answer ends")

    def last_answer(self):
        return self.all(".message.assistant")[-1].text

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
    page.ask("Bonjour, raconte-moi une histoire.")
    expect_equal(page.all(".message.user")[-1].text.strip(), "Bonjour, raconte-moi une histoire.", "question shown")
    expect(page.last_answer().strip(), "the answer is empty")
    lengths = page.browser.execute_script("return window.seen")
    growing = [length for length in lengths if length > 0]
    expect(len(growing) >= 2, f"the answer came in one piece: lengths {lengths}")


def test_enter_sends_and_the_prompt_is_emptied(page):
    before = len(page.all(".message.user"))
    page.type("What is the sea?")
    page.find("#prompt").send_keys(Keys.ENTER)
    page.wait(lambda: len(page.all(".message.user")) == before + 1, "the question is shown")
    page.wait(page.is_idle, "the answer ends")
    expect_equal(page.find("#prompt").get_attribute("value"), "", "prompt after sending")


def test_html_in_a_question_is_shown_as_text(page):
    page.ask("<img src=x onerror=\"document.title='broken'\"><b>bold</b>")
    expect_equal(len(page.all("#messages .message.user img, #messages .message.user b")), 0, "elements made from text")
    expect("<b>bold</b>" in page.all(".message.user")[-1].text, "the question is not shown as it was typed")
    expect(page.browser.title != "broken", "a question ran as a script")


def test_stop_ends_the_answer(page):
    page.browser.execute_script(STOP_AT_ONCE)
    page.type("Tell me a very long story about the wind and the sea.")
    page.find("#send").click()
    page.wait(lambda: page.browser.execute_script("return window.stopped"), "stop can be pressed")
    page.wait(page.is_idle, "the answer ends")
    text = page.last_answer()
    time.sleep(1)
    expect_equal(page.last_answer(), text, "answer one second after stop")
    page.ask("And now?")


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
