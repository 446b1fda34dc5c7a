import pytest

from rubric_influence.core.fingerprints import fingerprint
from rubric_influence.core.model_sections import Endpoint, ModelSpec
from rubric_influence.engines.base import Sampling
from rubric_influence.engines.requests import write_requests
from rubric_influence.engines.shapes import adapt, advise, open_shape

BODY = {"model": "m", "messages": [], "seed": 5, "temperature": 1.0, "top_p": 1.0, "max_tokens": 8}
CONVERSATION = [{"role": "user", "content": "a drug"}]
URL = "http://127.0.0.1/v1"


def open_endpoint(**fields):
    return Endpoint(base_url=URL, **fields)


def key(top_p=1.0, **fields):
    spec = ModelSpec(path="m", engine="openai", endpoint={"base_url": URL} | fields)
    (request,) = write_requests(spec, spec.endpoint, [CONVERSATION], Sampling(3, 8, top_p=top_p))
    return request.key


def test_the_body_goes_as_the_profile_says():
    assert open_shape(open_endpoint()).write(BODY) == BODY
    shape = open_shape(open_endpoint(omit=["seed"], rename={"max_tokens": "max_completion_tokens"}, stream=True))
    assert shape.write(BODY) == {
        **{"model": "m", "messages": [], "temperature": 1.0, "top_p": 1.0, "max_completion_tokens": 8},
        **{"stream": True, "stream_options": {"include_usage": True}},
    }


def test_only_what_draws_other_answers_changes_the_key():
    assert key() == "a3384314da97b251"  # as before there were shapes: answers that were kept are found
    for fields in (dict(omit=["seed"]), dict(omit=["top_p"]), dict(rename={"max_tokens": "n"}), dict(stream=True)):
        assert key(**fields) == key()
    assert len({key(), key(top_p=0.9), key(top_p=0.9, omit=["top_p"])}) == 3
    assert key(top_p=0.9, omit=["top_p"]) == key(top_p=0.8, omit=["top_p"])


def test_a_fingerprint_covers_what_is_left_out_and_no_name_or_seed():
    def of(**fields):
        return fingerprint(ModelSpec(path="m", engine="openai", endpoint={"base_url": URL} | fields))

    assert of() == of(omit=["seed"]) == of(stream=True) == of(rename={"seed": "random_seed"}) != of(omit=["top_p"])


def test_one_refusal_costs_one_parameter():
    shape, note = adapt(open_shape(open_endpoint()), ("temperature", "top_p"), "not both", BODY)
    assert shape.omit == {"top_p"} and note.startswith("top_p is not sent; it is 1")
    shape, _ = adapt(open_shape(open_endpoint()), ("temperature", "top_p"), "not both", BODY | {"top_p": 0.9})
    assert shape.omit == {"temperature"}
    assert adapt(open_shape(open_endpoint()), ("top_p",), "no", BODY | {"top_p": 0.9}) is None


def test_a_renamed_seed_that_is_refused_is_left_out():
    shape, note = adapt(open_shape(open_endpoint(rename={"seed": "random_seed"})), ("random_seed",), "no", BODY)
    assert "random_seed" not in shape.write(BODY) and note.startswith("seed is not sent")


def test_what_is_refused_and_needed_is_not_given_up():
    shape = open_shape(open_endpoint(rename={"max_tokens": "max_completion_tokens"}))
    for unwanted in (("max_completion_tokens",), ("response_format",), ()):
        assert adapt(shape, unwanted, "not supported", BODY) is None
        assert advise(unwanted)


@pytest.mark.parametrize("fields", [dict(omit=["max_tokens"]), dict(omit=["messages"]), dict(rename={"model": "m"})])
def test_what_a_request_needs_cannot_be_left_out(fields):
    with pytest.raises(ValueError, match="seed"):
        open_endpoint(**fields)
