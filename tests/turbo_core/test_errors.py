import pytest
from td_pack.turbo_core.errors import LONGEST, TurboError


@pytest.mark.parametrize("value", ["x" * 10_000_000, "\x1b" * 5000, "\n" * 1500, "\ud800" * 1999, "\u202e"])
def test_a_message_fits_a_screen_whatever_it_quotes(value):
    text = str(TurboError(f"The name {value} is wrong: choose another."))
    assert text.isprintable() and len(text) <= LONGEST
    assert text.startswith("The name ") and text.endswith(" is wrong: choose another.")


def test_other_messages_stay_as_they_are():
    assert str(TurboError("steps is 0: choose 1 to 16, \u6b65\u6570.")) == "steps is 0: choose 1 to 16, \u6b65\u6570."
