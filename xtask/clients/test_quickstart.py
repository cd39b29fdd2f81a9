#!/usr/bin/env python3
"""A whole quickstart on a small budget: stopped, resumed, ended. Usage: test_quickstart.py --galerne PROGRAM"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import tempfile

import checks
from checks import expect, expect_equal

# Enough for the smallest model and some steps of each run.
BUDGET_MINUTES = "0.2"
MODEL_FILES = ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "galerne.json", "MODEL_CARD.md"]
STAGES = ["base", "chat", "specialised"]


class Run:
    """A home with the quickstart under test, and what it has said so far."""

    def __init__(self, galerne, home):
        self.galerne = galerne
        self.home = pathlib.Path(home)
        self.environment = {**os.environ, "GALERNE_HOME": home}
        self.summary = None

    @property
    def folder(self):
        return self.home / "runs/quickstart-1"

    def start(self, *arguments):
        pipe = subprocess.PIPE
        return subprocess.Popen([self.galerne, *arguments], env=self.environment, stdout=pipe, stderr=pipe, text=True)

    def json(self, *arguments):
        process = self.start(*arguments, "--json")
        out, errors = process.communicate()
        expect_equal(process.returncode, 0, f"the exit code of {arguments}, which said {errors[-500:]!r},")
        return json.loads(out)


def test_an_interrupt_during_training_saves_and_says_how_to_go_on(run):
    process = run.start("quickstart", "--budget", BUDGET_MINUTES, "--no-serve", "--seed", "5")
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith("step "):
            process.send_signal(signal.SIGINT)
            break
    said += process.stderr.read()
    expect_equal(process.wait(), 130, f"the exit code, after {said[-500:]!r},")
    expect("galerne resume quickstart-1" in said, f"no way to go on in {said[-500:]!r}")
    expect((run.folder / "data/sheet.json").is_file(), "the data sheet is not there")


def test_a_resumed_quickstart_ends_with_the_fixed_form(run):
    stopped_s = sum(stage_seconds(run).values())
    expect(stopped_s > 1, f"the stopped part left {stopped_s} s")
    summary = run.json("resume", "quickstart-1")
    for key in ["seconds", "parameters", "tokens_per_s"]:
        expect(summary[key] > 0, f"{key} is {summary[key]!r}")
    expect(summary["seconds"] > stopped_s, "the time of the stopped part is not counted")
    expect(set(summary["bits_per_byte"]) >= {"fr", "en", "de", "es", "it"}, f"bits per byte of {summary['bits_per_byte']}")
    expect_equal(sorted(summary["company_accuracy"]), sorted(STAGES), "company_accuracy")
    expect_equal(sorted(summary["models"]), sorted(STAGES), "models")
    run.summary = summary


def stage_seconds(run):
    """The time of each stage, from the settings, which are TOML of one line per value."""
    names, seconds = [], []
    for line in (run.folder / "quickstart.toml").read_text().splitlines():
        if line.startswith("name = "):
            names.append(line.removeprefix("name = ").strip('"'))
        elif line.startswith("seconds = "):
            seconds.append(float(line.removeprefix("seconds = ")))
    return dict(zip(names, seconds))


def test_every_model_is_a_directory_that_answers(run):
    for stage in STAGES:
        folder = pathlib.Path(run.summary["models"][stage])
        for file in MODEL_FILES:
            expect((folder / file).is_file(), f"{folder.name} has no {file}")
        arguments = ["--model", folder.name, "--prompt", "The", "--max-tokens", "4", "--temperature", "0"]
        answer = run.json("generate", *arguments)
        expect(1 <= len(answer["token_ids"]) <= 4, f"{folder.name} answers {answer}")


def test_the_run_holds_its_report(run):
    for file in ["report.html", "loss.svg"]:
        expect((run.folder / file).stat().st_size > 1000, f"{file} is empty")
    for stage in ["pretrain", "tune-chat", "tune-company"]:
        expect((run.folder / stage / "metrics.jsonl").stat().st_size > 0, f"{stage} has no metrics")


def test_an_ended_quickstart_is_shown_again_and_trains_nothing(run):
    again = run.json("resume", "quickstart-1")
    for key in ["models", "company_accuracy", "bits_per_byte"]:
        expect_equal(again[key], run.summary[key], key)
    expect_equal(len(list((run.home / "models").iterdir())), 3, "the number of models")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--galerne", required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        run = Run(arguments.galerne, home)
        checks.run([(test, [run]) for test in checks.tests_of(globals())])


if __name__ == "__main__":
    main()
