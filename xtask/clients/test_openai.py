#!/usr/bin/env python3
"""A running server as the Python client of OpenAI sees it. Usage: test_openai.py --url http://127.0.0.1:PORT"""

import argparse
import concurrent.futures
import json
import typing
import urllib.error
import urllib.request

import openai
import pydantic

import checks
from checks import expect, expect_equal

QUESTION = [{"role": "user", "content": "Bonjour ! Comment vas-tu ?"}]
CONVERSATION = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hello, what can I do for you?"},
    {"role": "user", "content": "Tell me about the sea."},
]
MAX_TOKENS = 24


class Service:
    """The server under test: its address, a client for it, and the model to ask."""

    def __init__(self, url, model):
        self.url = url
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
        self.model = model or self.client.models.list().data[0].id

    def ask(self, messages=QUESTION, **options):
        options = {"temperature": 0, "max_tokens": MAX_TOKENS, **options}
        return self.client.chat.completions.create(model=self.model, messages=messages, **options)


def status_of(request):
    """The HTTP status of a raw request."""
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def expect_refused(call, kind, *words):
    """The call raises the client's error `kind`, whose message holds the words."""
    try:
        call()
    except kind as error:
        body = error.body or {}
        message = body.get("message", "") if isinstance(body, dict) else ""
        for word in words:
            expect(word in message, f"the message {message!r} lacks {word!r}")
        return
    raise AssertionError(f"no {kind.__name__} was raised")


def test_health_answers(service):
    expect_equal(status_of(f"{service.url}/health"), 200, "status of /health")


def test_models_are_listed_and_found_by_name(service):
    models = service.client.models.list().data
    expect(service.model in [model.id for model in models], f"{service.model} is not in the list")
    expect(all(model.object == "model" for model in models), "an entry is not a model")
    expect_equal(service.client.models.retrieve(service.model).id, service.model, "id of the model")


def test_chat_answers_with_usage(service):
    answer = service.ask()
    expect_equal(answer.object, "chat.completion", "object")
    expect_equal(answer.model, service.model, "model")
    choice = answer.choices[0]
    expect_equal(choice.message.role, "assistant", "role")
    expect(isinstance(choice.message.content, str), "the content is no text")
    expect(choice.finish_reason in ("stop", "length"), f"finish_reason is {choice.finish_reason}")
    usage = answer.usage
    expect(usage.prompt_tokens > 0, "no prompt token was counted")
    expect(0 < usage.completion_tokens <= MAX_TOKENS, f"{usage.completion_tokens} tokens, at most {MAX_TOKENS}")
    expect_equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens, "total_tokens")


def test_a_conversation_with_a_system_message_is_accepted(service):
    shorter = service.ask(CONVERSATION[1:2]).usage.prompt_tokens
    longer = service.ask(CONVERSATION).usage.prompt_tokens
    expect(longer > shorter, f"{longer} prompt tokens for the conversation, {shorter} for its start")


def test_a_long_answer_ends_by_length(service):
    answer = service.ask(max_tokens=1)
    if answer.choices[0].message.content:
        expect_equal(answer.choices[0].finish_reason, "length", "finish_reason after one token")
    expect_equal(answer.usage.completion_tokens, 1, "completion_tokens")


def test_a_stream_says_what_the_whole_answer_says(service):
    whole = service.ask().choices[0]
    pieces = list(service.ask(stream=True))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    expect_equal(text, whole.message.content, "streamed text")
    reasons = [piece.choices[0].finish_reason for piece in pieces if piece.choices]
    expect_equal([reason for reason in reasons if reason], [whole.finish_reason], "finish reasons")
    expect_equal(pieces[0].choices[0].delta.role, "assistant", "role in the first piece")
    expect_equal(len({piece.id for piece in pieces}), 1, "number of ids in one stream")
    expect(all(piece.usage is None for piece in pieces), "usage was sent without being asked for")


def test_a_stream_ends_with_the_usage_when_asked(service):
    whole = service.ask().usage
    pieces = list(service.ask(stream=True, stream_options={"include_usage": True}))
    expect_equal(pieces[-1].choices, [], "choices of the last piece")
    expect_equal(pieces[-1].usage.completion_tokens, whole.completion_tokens, "completion_tokens")
    expect_equal(pieces[-1].usage.prompt_tokens, whole.prompt_tokens, "prompt_tokens")


def test_a_stream_left_early_does_not_disturb_the_next_request(service):
    expected = service.ask().choices[0].message.content
    stream = service.ask(stream=True, max_tokens=200)
    next(iter(stream))
    stream.close()
    expect_equal(service.ask().choices[0].message.content, expected, "answer after a closed stream")


def test_equal_seeds_give_equal_answers(service):
    answers = [service.ask(temperature=1, seed=7).choices[0].message.content for _ in range(2)]
    expect_equal(answers[0], answers[1], "second answer with the same seed")


def test_a_stop_text_ends_the_answer_before_it(service):
    text = service.ask().choices[0].message.content
    if len(text) < 4:
        return
    stop = text[2:4]
    answer = service.ask(stop=[stop]).choices[0]
    expect_equal(answer.message.content, text[: text.index(stop)], "answer up to the stop text")
    expect_equal(answer.finish_reason, "stop", "finish_reason")
    pieces = service.ask(stop=[stop], stream=True)
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    expect_equal(streamed, answer.message.content, "streamed answer up to the stop text")


def test_answers_are_the_same_alone_and_together(service):
    questions = [[{"role": "user", "content": f"What is {number} plus {number}?"}] for number in range(6)]
    alone = [service.ask(question).choices[0].message.content for question in questions]
    with concurrent.futures.ThreadPoolExecutor(max_workers=len(questions)) as threads:
        together = list(threads.map(lambda question: service.ask(question).choices[0].message.content, questions))
    expect_equal(together, alone, "answers given together")


def test_text_completions_answer_and_stream(service):
    def complete(**options):
        options = {"temperature": 0, "max_tokens": MAX_TOKENS, **options}
        return service.client.completions.create(model=service.model, prompt="Il était une fois", **options)

    whole = complete()
    expect_equal(whole.object, "text_completion", "object")
    expect(0 < whole.usage.completion_tokens <= MAX_TOKENS, "completion_tokens out of bounds")
    streamed = "".join(piece.choices[0].text for piece in complete(stream=True) if piece.choices)
    expect_equal(streamed, whole.choices[0].text, "streamed text")


def test_several_answers_share_a_prompt(service):
    alone = [service.ask(temperature=1, seed=seed).choices[0].message.content for seed in (7, 8)]
    both = service.ask(temperature=1, seed=7, n=2)
    expect_equal([choice.message.content for choice in both.choices], alone, "answers to one request")
    expect_equal([choice.index for choice in both.choices], [0, 1], "indices")
    expect_equal(both.usage.prompt_tokens, service.ask().usage.prompt_tokens, "prompt tokens")
    texts = ["", ""]
    for piece in service.ask(temperature=1, seed=7, n=2, stream=True):
        for choice in piece.choices:
            texts[choice.index] += choice.delta.content or ""
    expect_equal(texts, alone, "streamed answers")


def test_an_answer_is_parsed_by_its_schema(service):
    class Wind(pydantic.BaseModel):
        name: typing.Literal["galerne", "mistral"]
        forces: list[typing.Literal[1, 2, 3]] = pydantic.Field(max_length=3)

    answer = service.client.chat.completions.parse(
        model=service.model, messages=QUESTION, response_format=Wind, max_tokens=200, temperature=0
    )
    parsed = answer.choices[0].message.parsed
    expect(isinstance(parsed, Wind), f"the answer {answer.choices[0].message.content!r} was not parsed")
    chosen = service.ask(extra_body={"structured_outputs": {"choice": ["oui", "non"]}}).choices[0].message.content
    expect(chosen in ("oui", "non"), f"the answer is {chosen!r}")


def test_tokens_are_scored(service):
    content = service.ask(logprobs=True, top_logprobs=3).choices[0].logprobs.content
    expect(all(len(token.top_logprobs) == 3 for token in content), "not three likeliest tokens everywhere")
    prompt = "Il était une fois"
    answer = service.client.completions.create(
        model=service.model, prompt=prompt, max_tokens=0, logprobs=2, echo=True, temperature=0
    ).choices[0]
    expect_equal(answer.text, prompt, "text of an echoed prompt")
    scores = answer.logprobs
    expect_equal(scores.token_logprobs[0], None, "score of the first token")
    expect(all(score <= 0 for score in scores.token_logprobs[1:]), "a log-probability is above 0")
    lengths = {len(scores.tokens), len(scores.token_logprobs), len(scores.top_logprobs), len(scores.text_offset)}
    expect_equal(len(lengths), 1, "number of lengths of the lists")


def test_an_unknown_model_is_refused_by_name(service):
    def call():
        service.client.chat.completions.create(model="no-such-model", messages=QUESTION)

    expect_refused(call, openai.NotFoundError, "no-such-model")


def test_bad_requests_are_refused_with_the_field(service):
    expect_refused(lambda: service.ask([]), openai.BadRequestError, "messages")
    expect_refused(lambda: service.ask(temperature=9), openai.BadRequestError, "temperature")
    expect_refused(lambda: service.ask(n=200), openai.BadRequestError, "n")
    unheard = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "strin"}}}
    expect_refused(lambda: service.ask(response_format=unheard), openai.BadRequestError, "JSON schema")
    expect_refused(lambda: service.ask([{"role": "wizard", "content": "x"}]), openai.BadRequestError, "role")


def test_a_prompt_beyond_the_context_is_refused_not_cut(service):
    endless = [{"role": "user", "content": "mot " * 100_000}]
    expect_refused(lambda: service.ask(endless), openai.BadRequestError, "token")


def test_a_body_that_is_no_json_is_refused(service):
    request = urllib.request.Request(
        f"{service.url}/v1/chat/completions", data=b"{nope", headers={"Content-Type": "application/json"}
    )
    expect_equal(status_of(request), 400, "status")


def test_an_unknown_path_is_not_found(service):
    request = urllib.request.Request(f"{service.url}/v1/nothing")
    try:
        urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        expect_equal(error.code, 404, "status")
        expect("message" in json.loads(error.read())["error"], "the body has no error object")
    else:
        raise AssertionError("the path was answered")


def test_a_foreign_host_or_origin_is_refused(service):
    for header, value in (("Host", "attacker.example"), ("Origin", "https://attacker.example")):
        request = urllib.request.Request(f"{service.url}/v1/models", headers={header: value})
        status = status_of(request)
        expect(400 <= status < 500, f"with a foreign {header} the status is {status}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", help="the model to ask (default: the first of the list)")
    arguments = parser.parse_args()
    service = Service(arguments.url.rstrip("/"), arguments.model)
    checks.run([(test, (service,)) for test in checks.tests_of(globals())])


if __name__ == "__main__":
    main()
