import dataclasses
import math
import os
from collections.abc import Mapping

import pytest

from dbl_tf import settings
from dbl_tf.settings import (
    Range,
    check,
    check_value,
    default_of,
    details_of,
    flag_name,
    setting,
    settings_of,
    with_absolute_paths,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Color:
    hue: float = setting(0.25, "Hue.", range=settings.FRACTION_BELOW_ONE, symbol="h")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    size: int | None = setting(None, "Size.", range=settings.POSITIVE)
    lambda_: float = setting(2.0, "Scale.", range=settings.NON_NEGATIVE, for_training=True)
    mode: str = setting("fast", "Mode.", choices=["fast", "exact"])
    path: str | None = setting(None, "Input file.", is_path=True)
    options: Mapping[str, int] = setting({"a": 1}, "Options.")
    color: Color = dataclasses.field(default_factory=Color)


@pytest.mark.parametrize(
    ("interval", "members", "others", "text"),
    [
        (settings.FINITE, [-1e300, 0, 7], [], "a finite number"),
        (settings.POSITIVE, [1e-300, 5], [0, -1], "greater than 0"),
        (settings.NON_NEGATIVE, [0, 5], [-1e-300], "at least 0"),
        (settings.FRACTION, [0, 0.5, 1], [-0.1, 1.1], "in [0, 1]"),
        (settings.FRACTION_BELOW_ONE, [0, 0.999], [-0.1, 1], "in [0, 1)"),
        (settings.SEED, [0, 2**32 - 1], [-1, 2**32], "in [0, 2^32)"),
        (Range(0, 1, above_low=True), [0.1, 1], [0, 1.1], "in (0, 1]"),
        (Range(high=3), [-100, 3], [3.1], "at most 3"),
        (Range(high=3, below_high=True), [2.9], [3], "less than 3"),
    ],
)
def test_ranges(interval, members, others, text):
    assert all(value in interval for value in members)
    assert not any(value in interval for value in [*others, math.nan, math.inf, -math.inf])
    assert str(interval) == text


def test_settings_of_a_record_leave_out_other_fields_and_nested_records():
    details = {field.name: detail for field, detail in settings_of(Settings)}
    assert list(details) == ["size", "lambda_", "mode", "path", "options"]
    assert details["mode"].choices == ("fast", "exact") and details["path"].is_path
    assert details["lambda_"].for_training and details["size"].description == "Size."
    assert [detail.symbol for _, detail in settings_of(Settings().color)] == ["h"]


def test_paths_become_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def in_home(path: str) -> str:
        return os.path.abspath(os.path.expanduser(path))

    assert with_absolute_paths(Settings(), in_home) == Settings()
    absolute = with_absolute_paths(Settings(path="a.csv", mode="exact"), in_home)
    assert absolute == Settings(path=str(tmp_path / "a.csv"), mode="exact")
    assert with_absolute_paths(Settings(path="~/a"), in_home).path == str(tmp_path / "home" / "a")


def test_settings_without_a_default_must_be_given():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Source:
        path: str = setting(settings.REQUIRED, "Input.", required_as="a CSV file")

    (field, details), *_ = settings_of(Source)
    assert default_of(field) is settings.REQUIRED and details_of(field) is details
    with pytest.raises(TypeError, match="path"):
        Source()


def test_names_and_defaults():
    fields = {field.name: field for field, _ in settings_of(Settings)}
    assert flag_name(fields["lambda_"]) == "lambda" and flag_name(fields["size"]) == "size"
    assert default_of(fields["lambda_"]) == 2.0 and default_of(fields["options"]) == {"a": 1}


def test_records_do_not_share_a_mutable_default():
    first, second = Settings(), Settings()
    first.options["a"] = 2
    assert second.options == {"a": 1} and Settings().options == {"a": 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "^size must be greater than 0; got 0$"),
        ({"lambda_": math.nan}, "^lambda_ must be at least 0; got nan$"),
        ({"mode": "slow"}, "^mode must be one of fast, exact; got 'slow'$"),
        ({"mode": "Exakt"}, r"one of fast, exact; got 'Exakt'; did you mean 'exact'\?$"),
    ],
)
def test_check_names_the_setting_and_the_accepted_values(values, message):
    check(Settings())
    with pytest.raises(ValueError, match=message):
        check(Settings(**values))
    with pytest.raises(ValueError, match=message):
        check(Settings, values)


def test_check_takes_a_name_and_an_exception():
    class OptionError(ValueError):
        pass

    with pytest.raises(OptionError, match=r"^--lambda must be at least 0; got -1$"):
        check(Settings(lambda_=-1), name_of=lambda f: f"--{flag_name(f)}", error=OptionError)


def test_check_value_refuses_none_although_check_passes_it():
    details = {field.name: detail for field, detail in settings_of(Settings)}
    check(Settings(size=None))
    for name in ("size", "mode"):
        with pytest.raises(ValueError, match=f"^{name} must be .*; got None$"):
            check_value(None, details[name], name=name)
