"""A model object is safe to hold: threads take turns, and after `close` every call says so and none hangs."""

import gc
import threading
import time
import weakref

import pytest
from scripted_model import byte_level_ids, write_byte_level_tokenizer, write_scripted_model

from expertflow_jax import InputError, OffloadedModel

TEXT = "abcdefghij"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("endless")
    write_byte_level_tokenizer(path)
    write_scripted_model(path, byte_level_ids(TEXT), end=False)
    return str(path)


def load(folder, **options):
    return OffloadedModel.from_pretrained(folder, **{"cache_fraction": 0.5, "max_tokens": 128} | options)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.generate("x"),
        lambda model: model.logits([[5]]),
        lambda model: model.routing_trace([[5]]),
        lambda model: model.stats(),
        lambda model: model.reset_stats(),
        lambda model: model.memory_plan(),
        lambda model: model.__enter__(),
    ],
)
def test_a_closed_model_says_so(folder, call):
    with load(folder) as model:
        pass
    model.close()
    with pytest.raises(InputError, match="the model is closed") as caught:
        call(model)
    assert "\n" not in str(caught.value)


def test_a_call_that_runs_ends_when_another_thread_closes(folder):
    model, errors, first = load(folder), [], threading.Event()

    def ask():
        try:
            while True:
                model.generate("x", max_new_tokens=100, stream=lambda *_: first.set())
        except InputError as error:
            errors.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    assert first.wait(60)
    model.close()
    thread.join(60)
    assert not thread.is_alive()
    assert "the model is closed" in errors[0]


def test_a_callback_may_close_the_model(folder):
    model = load(folder)
    with pytest.raises(InputError, match="the model is closed"):
        model.generate("x", stream=lambda *_: model.close())


def test_a_callbacks_own_exception_comes_through(folder):
    class Own(Exception):
        pass

    def fails(*_):
        raise Own

    def closes_and_fails(*_):
        model.close()
        raise Own

    with load(folder) as model:
        with pytest.raises(Own):
            model.generate("x", stream=fails)
        assert model.generate("x", max_new_tokens=3)[0].text == TEXT[:3]
        with pytest.raises(Own):
            model.generate("x", stream=closes_and_fails)


def test_a_callback_may_look_but_not_ask(folder):
    with load(folder) as model:
        plans = []
        model.generate("x", max_new_tokens=2, stream=lambda *_: plans.append((model.stats(), model.memory_plan())))
        assert len(plans) == 2
        with pytest.raises(InputError, match="generate of this model is not over"):
            model.generate("x", stream=lambda *_: model.generate("x"))
        assert model.generate("x", max_new_tokens=2)[0].text == TEXT[:2]


def test_threads_take_turns(folder):
    with load(folder) as model:
        texts = []

        def ask():
            for _ in range(4):
                texts.extend(answer.text for answer in model.generate(["x", "y"], max_new_tokens=6))
                model.logits([[5, 6]])

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert texts == [TEXT[:6]] * 24


def test_a_dropped_model_ends_its_thread(folder):
    before = threading.active_count()
    model = load(folder)
    model.generate("x", max_new_tokens=2, stream=lambda *_: None)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
    for _ in range(100):
        if threading.active_count() <= before:
            return
        time.sleep(0.05)
    raise AssertionError("the transfer thread goes on")
