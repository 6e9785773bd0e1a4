"""The text of an answer while its tokens still come: only what no later token can change or take back.

Three things may still change at the end of a text. A character of several tokens is U+FFFD until the last of them is
there. Tokenizers with byte fallback (Llama, Mixtral) decode a run of byte tokens as a whole, so that one more byte
may turn all of its characters into U+FFFD. And what looks like the beginning of a stop text may turn out to be one,
which is no part of the answer.
"""

from collections.abc import Callable, Sequence

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what decoders give for a character whose other bytes are missing


class TextStream:
    """One answer. What `push` and `finish` return, put together, is `text`: the decoded answer before the stop text
    that is complete first; of several that end together, the one that begins first.

    Attributes:
      text: what has been returned so far; after `finish` the whole answer.
      stopped: a stop text has come, so that the answer is over.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str] = (),
        is_open: Callable[[int], bool] = lambda token: False,
    ):
        """
        Args:
          decode: text of token ids. Tokens that follow may change U+FFFD at its end, what tokens gave for which
            `is_open` is true up to the end, and nothing else.
          stops: texts that end the answer, none of them empty.
          is_open: whether the token after this one may change this one's text.
        """
        self.text = ""
        self.stopped = False
        self._decode = decode
        self._stops = tuple(stops)
        self._is_open = is_open
        self._ids: list[int] = []
        self._settled = 0  # of the ids: those before the run of open tokens at the end

    def push(self, token: int) -> str:
        """The text that one more token makes certain; nothing once the answer has stopped."""
        if self.stopped:
            return ""
        self._ids.append(token)
        text = self._decode(self._ids).rstrip(INCOMPLETE)
        if self._cut(text) is not None:
            return self.finish()
        if not self._is_open(token):
            self._settled = len(self._ids)
        else:
            text = self._decode(self._ids[: self._settled]).rstrip(INCOMPLETE)
        return self._extend(text[: len(text) - self._beginning_of_stop(text)])

    def finish(self) -> str:
        """The rest, once no token will follow."""
        text = self._decode(self._ids)
        cut = self._cut(text)
        self.stopped = cut is not None
        text = text[:cut]
        # A decoder that changes more than it may (see `decode`) can't call back what is out.
        return self._extend(text if text.startswith(self.text) else self.text + text[len(self.text) :])

    def _extend(self, text: str) -> str:
        """What `text` has beyond the text so far; nothing while it does not go on from there."""
        rest = text[len(self.text) :] if text.startswith(self.text) else ""
        self.text += rest
        return rest

    def _cut(self, text: str) -> int | None:
        """Where the stop text begins that ends the answer, however its characters come in tokens."""
        inside = [(place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0]
        return min(inside)[1] if inside else None

    def _beginning_of_stop(self, text: str) -> int:
        """Characters at the end of `text` that a stop text begins with."""
        longest = max(map(len, self._stops), default=1) - 1
        lengths = range(min(longest, len(text)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)
