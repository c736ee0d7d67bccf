import pytest

from dbl_tf.messages import first_few, first_lines


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([], ""),
        (["a"], "a"),
        (list("abcde"), "a, b, c, d, e"),
        (list("abcdef"), "a, b, c, d, e and 1 more"),
        (range(100), "0, 1, 2, 3, 4 and 95 more"),
    ],
)
def test_the_first_five_are_listed_and_the_others_counted(items, text):
    assert first_few(items) == text


def test_limit_separator_and_count_of_a_list():
    assert first_few("abcdef", "; ", limit=2) == "a; b and 4 more"
    assert first_few(["a", "b"], count=9) == "a, b and 7 more"
    assert first_few(["a", "b"], count=2) == "a, b"


def test_lines_are_indented_and_the_rest_has_its_own():
    assert first_lines([]) == ""
    assert first_lines(["a", "b"]) == "  a\n  b"
    assert first_lines(list("abcdefg"), "    ", limit=2) == "    a\n    b\n    and 5 more"
    assert first_lines(["a"], count=3) == "  a\n  and 2 more"
