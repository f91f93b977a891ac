"""The real `openai` package against a running server.

    openai_client.py URL            a server with a model
    openai_client.py URL --written  tests/serve/stand_in_server.cc, whose words are known and checked, too

Needs openai and Pillow.
"""

import base64
import io
import sys
import threading

import httpx
import openai
import pydantic


def png(width=64, height=48):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("L", (width, height), 80).save(buffer, "PNG")
    return buffer.getvalue()


def question(text="What does it show?", picture=None):
    uri = "data:image/png;base64," + base64.b64encode(picture or png()).decode()
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}, {"type": "text", "text": text}]}]


def expect_error(kind, call, words):
    try:
        call()
    except kind as error:
        assert words in str(error) or words == error.code, (words, error.code, str(error))
        return error
    raise AssertionError(f"no {kind.__name__}")


def check(url, written):
    client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
    model = client.models.list().data[0].id
    assert client.models.retrieve(model).id == model

    whole = client.chat.completions.create(model=model, messages=question(), temperature=0, seed=1, n=2, max_tokens=900)
    assert whole.object == "chat.completion" and len(whole.choices) == 2
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.choices[0].message.role == "assistant"
    grounded = whole.choices[0].model_extra["thinkvg"]
    assert grounded["pictures"][0]["width"] == 64
    if written:
        assert whole.choices[0].finish_reason == "stop"
        assert grounded["answer"].startswith("Cardiomegaly"), grounded
        x1, y1, x2, y2 = grounded["boxes"][0]["box"]
        assert 0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 48
        sentence = next(s for s in grounded["sentences"] if s["regions"])
        assert whole.choices[0].message.content[sentence["start"] : sentence["end"]] == sentence["text"]

    pieces, last, usage = [], None, None
    with client.chat.completions.create(
        model=model, messages=question(), temperature=0, seed=1, max_tokens=900, stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        for chunk in stream:
            if chunk.choices:
                pieces.append(chunk.choices[0].delta.content or "")
                last = chunk.choices[0]
            usage = chunk.usage or usage
    assert "".join(pieces) == whole.choices[0].message.content
    assert last.finish_reason == whole.choices[0].finish_reason
    assert last.model_extra["thinkvg"]["answer"] == grounded["answer"]
    assert usage.completion_tokens == whole.usage.completion_tokens / 2 or not written

    probs = client.chat.completions.create(
        model=model, messages=question(), temperature=0, max_tokens=8, logprobs=True, top_logprobs=3
    ).choices[0]
    assert probs.finish_reason in ("length", "stop")
    assert 1 <= len(probs.logprobs.content) <= 8
    for token in probs.logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        text = bytes(token.bytes).decode(errors="replace")
        assert text == token.token or "\ufffd" in text, token

    # The package's own helper for schemas: an answer of that form, or a refusal that says why.
    class Finding(pydantic.BaseModel):
        name: str

    try:
        client.chat.completions.parse(model=model, messages=question(), response_format=Finding, max_tokens=200)
    except openai.BadRequestError as error:
        assert "response_format" in str(error)
    except (openai.LengthFinishReasonError, pydantic.ValidationError):
        pass

    create = client.chat.completions.create
    expect_error(openai.NotFoundError, lambda: create(model="other", messages=question()), "model_not_found")
    expect_error(openai.BadRequestError, lambda: create(model=model, messages=[]), "messages")
    expect_error(openai.BadRequestError, lambda: create(model=model, messages=question(picture=b"xx")), "invalid_image")
    remote = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org/x.png"}}]}]
    expect_error(openai.BadRequestError, lambda: create(model=model, messages=remote), "fetches no URLs")
    expect_error(openai.BadRequestError, lambda: create(model=model, messages=question(), extra_body={"top_kk": 1}), "top_k")

    form = httpx.post(
        url + "/v1/chat/completions",
        data={"question": "What?", "max_tokens": "5"},
        files=[("image", ("a.png", png(), "image/png")), ("image", ("b.png", png(32, 32), "image/png"))],
        timeout=120,
    )
    assert form.status_code == 200, form.text
    assert [p["width"] for p in form.json()["choices"][0]["thinkvg"]["pictures"]] == [64, 32]

    # Many at once, some of which leave in the middle.
    problems = []

    def one(i):
        try:
            with create(model=model, messages=question(f"Question {i}"), max_tokens=64, stream=True) as stream:
                for count, _ in enumerate(stream):
                    if i % 4 == 3 and count == 3:
                        break
        except Exception as error:  # noqa: BLE001
            problems.append(repr(error))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems
    metrics = httpx.get(url + "/metrics").text
    assert 'thinkvg_http_responses_total{route="/v1/chat/completions",status="200"}' in metrics


def main():
    check(sys.argv[1].rstrip("/"), written="--written" in sys.argv)
    print("ok")


if __name__ == "__main__":
    main()
