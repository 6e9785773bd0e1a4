"""Names: the nearest one is suggested, options are read, and errors of a path outside the package take one line."""

import textwrap

import pytest

from expertflow_jax import names
from expertflow_jax.errors import InputError


class Animal:
    name = ""


class Cat(Animal):
    name = "cat"

    def __init__(self, lives: int = 9, colours: tuple[str, ...] = ()):
        self.lives, self.colours = lives, colours


class Tag(Animal):
    name = "tag"

    def __init__(self, label):
        self.label = label


KNOWN: dict[str, type[Animal]] = {"cat": Cat, "tag": Tag}


def make(value, **options):
    return names.make("animal", value, KNOWN, Animal, **options)


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """Writes a module that can be imported."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))

    return write


def test_the_nearest_name_is_suggested_and_all_are_listed():
    assert names.find("animal", "cat", KNOWN) == "cat"
    with pytest.raises(InputError, match=r"^animal 'caat' does not exist; did you mean 'cat'\? Known: cat, tag$"):
        names.find("animal", "caat", KNOWN)
    with pytest.raises(InputError, match="none is known"):
        names.find("animal", "cat", [])


def test_names_classes_paths_and_objects_are_accepted(outside):
    outside("zoo_of_ours", "from test_names import Cat\nclass Lion(Cat):\n    name = 'lion'\n")
    tom = Cat(7)
    assert make(tom) is tom
    assert make(Cat).lives == make("cat").lives == 9
    assert make("cat(lives=3, colours=('red',))").colours == ("red",)
    assert make(" cat( lives = 3 ) ", lives=5).lives == 5
    assert make("zoo_of_ours:Lion(lives=1)").name == "lion"
    assert make("tag", label=2).label == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("cat(tails=1)", r"animal cat: option 'tails' does not exist; did you mean 'lives'"),
        ("cat(9)", r"write options as cat\(key=value"),
        ("cat(lives=print())", r"write options as cat\(key=value"),
        ("cat(lives=1", "does not exist"),
        ("tag", r"animal tag: give it label, as in NAME\(label=...\)"),
        ("nowhere.at_all:Lion", "no module 'nowhere' is found; install it"),
        ("broken_zoo:Lion", "module broken_zoo fails on import with ZeroDivisionError"),
        ("sound_zoo:Lino", "did you mean 'Lion'"),
        ("sound_zoo:Lion", "not a Animal; subclass test_names.Animal"),
        (3, "animal 3: not a Animal"),
        (int, "not a Animal"),
    ],
)
def test_mistakes_are_named_in_one_line(outside, value, message):
    outside("broken_zoo", "1 / 0\n")
    outside("sound_zoo", "class Lion:\n    pass\n")
    with pytest.raises(InputError, match=message) as caught:
        make(value)
    assert "\n" not in str(caught.value)


def test_an_object_takes_no_options():
    with pytest.raises(InputError, match="is an object already"):
        make(Cat(), lives=2)
