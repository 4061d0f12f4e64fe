"""How messages are shortened."""

from resnet_core.foundation.errors import first_line, last_line, without_remedy


def test_a_line_of_a_message_or_the_type_of_an_empty_one():
    error = RuntimeError("two faults:\n\tfirst\n\tsecond\n")
    assert (first_line(error), last_line(error)) == ("two faults:", "second")
    assert first_line(KeyError()) == last_line(KeyError()) == "KeyError"


def test_the_remedy_is_what_follows_the_last_semicolon():
    assert (
        without_remedy(ValueError("a;b/c is cut off; it has 3 bytes; fetch it again"))
        == "a;b/c is cut off; it has 3 bytes"
    )
    assert without_remedy(ValueError("nothing to do")) == "nothing to do"
