"""Items of messages: pictures are read wherever they lie in an item, and nothing vanishes."""

import base64

import numpy as np
import pytest
from PIL import Image

from expertflow_jax.errors import InputError
from expertflow_jax.processing import check_messages, split_pictures
from expertflow_jax.processing.opening import open_image


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a picture.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
    return path


def turn(*items):
    return [{"role": "user", "content": list(items)}]


def test_every_form_of_a_picture(picture):
    pixels = np.asarray(Image.open(picture))
    text = base64.b64encode(picture.read_bytes()).decode()
    sources = [
        {"image": str(picture)},
        {"image": picture},
        {"path": str(picture)},
        {"url": str(picture)},
        {"url": picture.as_uri()},
        {"image": Image.open(picture)},
        {"image": pixels},
        {"base64": text},
        {"url": "data:image/png;base64," + text},
        {"image": "data:image;base64," + text},
        {"image_url": {"url": "data:image/png;base64," + text, "detail": "low"}},
    ]
    kinds = [{"type": "image"} | source for source in sources] + [{"type": "image_url", **sources[-1]}, sources[0]]
    messages, pictures = split_pictures(turn(*kinds, {"type": "text", "text": "What is it?"}), "messages")
    assert messages == turn(*[{"type": "image"}] * len(kinds), {"type": "text", "text": "What is it?"})
    for source in pictures:
        np.testing.assert_array_equal(np.asarray(open_image(source)), pixels)


def test_pictures_given_beside_the_messages():
    messages = turn({"type": "image"}, {"text": "What is it?"})
    assert split_pictures(messages, "messages") == (messages, [None])
    assert split_pictures([{"role": "user", "content": "hello"}], "messages")[1] == []


@pytest.mark.parametrize(
    "item",
    [
        {"type": "imgae"},
        {"type": "video", "video": "a.mp4"},
        {"type": "audio", "audio": "a.wav"},
        {"type": "image", "imgae": "a.png"},
        {"type": "image", "image": "a.png", "url": "b.png"},
        {"type": "image", "image": 5},
        {"type": "image", "base64": "?"},
        {"type": "image_url"},
        {"type": "image_url", "image_url": {"uri": "a.png"}},
        {"type": "image", "url": "https://example.org/a.png"},
        {"type": "image", "url": "HTTP://example.org/a.png"},
        {"type": "image", "url": "ftp://example.org/a.png"},
        {"type": "image", "url": "data:image/png,abc"},
        {"type": "text"},
        {"type": "text", "text": 5},
        {"type": "text", "text": "a", "image": "a.png"},
        {"type": ["image"]},
        {"type": None},
        {"image_pad": "a.png"},
        {},
    ],
)
def test_nothing_vanishes(item):
    with pytest.raises(InputError, match=r"line 7: message 0, item 1: ") as caught:
        check_messages(turn({"type": "text", "text": "What?"}, item), "line 7")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["image", "images", "image_url", "video", "audio"])
def test_nothing_beside_the_content_vanishes(key):
    with pytest.raises(InputError, match=rf'line 7: message 1: "{key}" beside "content" is not read') as caught:
        check_messages(
            [{"role": "user", "content": "a", key: None}, {"role": "user", "content": "b", key: "a.png"}], "line 7"
        )
    assert "\n" not in str(caught.value)


def test_urls_are_to_be_downloaded_first():
    with pytest.raises(InputError, match="download it and pass the file"):
        open_image("https://example.org/a.png")
