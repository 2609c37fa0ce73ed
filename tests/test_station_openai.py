"""The station as an OpenAI-compatible server, asked by OpenAI's own client."""

from __future__ import annotations

import time

import httpx2
import openai
import pytest

from bundler.station.configuration import this_platform
from bundler.testing.station_bundle import make_bundle, model_entry
from bundler.testing.station_process import running_station

# One client for all: making one costs 50 ms. It keeps no connection, so each request stands alone.
CLIENT = httpx2.Client(limits=httpx2.Limits(max_keepalive_connections=0), trust_env=False)


@pytest.fixture(scope="module")
def station(tmp_path_factory):
    models = [model_entry(), model_entry() | {"name": "embed", "role": "embed"}]
    root = make_bundle(
        tmp_path_factory.mktemp("api"), platform=this_platform(), delay_ms=10,
        changes={"models": models},
    )  # fmt: skip
    with running_station(root) as running:
        yield running


@pytest.fixture
def client(station):
    with openai.OpenAI(base_url=station.url + "v1", api_key="any", max_retries=0) as one:
        yield one


def say(text):
    return [{"role": "user", "content": text}]


def test_the_bundles_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["chat", "embed"]
    assert client.models.retrieve("chat").id == "chat"


def test_a_chat_is_answered_whole(client):
    answer = client.chat.completions.create(model="chat", messages=say("hello"))
    assert answer.choices[0].message.content == "You said: hello"
    assert answer.choices[0].finish_reason == "stop"


def test_a_chat_is_answered_as_a_stream(client):
    stream = client.chat.completions.create(model="chat", messages=say("one two"), stream=True)
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    chunk_models = {chunk.model for chunk in chunks}
    assert "".join(pieces) == "You said: one two"
    assert chunk_models == {"chat"}
    assert len(pieces) > 3


def test_a_text_is_completed_whole_and_as_a_stream(client):
    whole = client.completions.create(model="chat", prompt="once upon a time").choices[0].text
    assert whole == " and so on after once upon a time"
    stream = client.completions.create(model="chat", prompt="once upon a time", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole


def test_texts_are_embedded(client):
    data = client.embeddings.create(model="embed", input=["a", "b"], encoding_format="float").data
    assert [item.index for item in data] == [0, 1]
    assert data[0].embedding != data[1].embedding


def test_a_model_is_not_asked_for_what_it_is_not_for(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="chat", input="a")
    assert caught.value.code == "wrong_role"
    assert "makes no embeddings" in str(caught.value)
    assert "Models that do: embed." in str(caught.value)
    with pytest.raises(openai.BadRequestError, match="Models that do: chat"):
        client.chat.completions.create(model="embed", messages=say("hi"))
    with pytest.raises(openai.BadRequestError, match="does not write"):
        list(client.completions.create(model="embed", prompt="a", stream=True))


def test_an_unknown_model_is_a_404_that_names_the_known(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4", messages=say("hi"))
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "There are: chat, embed." in str(caught.value)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_what_is_no_route_is_an_error_in_openais_form(station):
    answer = CLIENT.post(station.url + "v1/images/generations", json={"model": "chat"})
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_missing_model_is_a_400(client):
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="", messages=say("hi"))


def active(station):
    return CLIENT.get(station.url + "api/status").json()["models"][0]["busy"]


def wait_until_free(station):
    began = time.monotonic()
    while active(station):
        assert time.monotonic() - began < 1.0
        time.sleep(0.02)


def test_a_caller_that_leaves_a_stream_frees_the_model(client, station):
    answer = client.chat.completions.create(model="chat", messages=say("SLOW"), stream=True)
    next(iter(answer))
    assert active(station) == 1
    answer.close()
    wait_until_free(station)


def test_a_caller_that_gives_up_waiting_frees_the_model(client, station):
    # The fake model takes ten seconds for a whole answer to this.
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).chat.completions.create(model="chat", messages=say("LATE"))
    wait_until_free(station)


def test_a_bundle_without_models_lists_none_and_says_so(tmp_path):
    root = make_bundle(tmp_path, platform=this_platform(), model=False)
    with (
        running_station(root) as station,
        openai.OpenAI(base_url=station.url + "v1", api_key="x", max_retries=0) as client,
    ):
        assert list(client.models.list()) == []
        with pytest.raises(openai.NotFoundError, match="There are: none"):
            client.chat.completions.create(model="chat", messages=say("hi"))


def test_a_model_that_failed_is_a_503_with_the_reason(tmp_path):
    command = ["{python}", "-c", "import sys; sys.exit('error: no luck')"]
    root = make_bundle(tmp_path, platform=this_platform(), command=command)
    with (
        running_station(root) as station,
        openai.OpenAI(base_url=station.url + "v1", api_key="x", max_retries=0) as client,
        pytest.raises(openai.InternalServerError, match="no luck") as caught,
    ):
        client.chat.completions.create(model="chat", messages=say("hi"))
    assert caught.value.status_code == 503
