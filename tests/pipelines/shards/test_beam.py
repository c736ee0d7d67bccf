import functools
import pathlib

import pytest

pytest.importorskip("apache_beam", reason="the extra `beam` is not installed")

from pipelines import record_formats, shrinking
from pipelines.datasets import digits_mlt
from pipelines.shards import beam, layout, writing


@pytest.mark.parametrize(
    ("record_format", "settings"),
    [*((name, None) for name in record_formats.FORMATS), ("array_record", shrinking.Settings())],
)
def test_a_beam_pipeline_writes_the_bytes_of_the_local_writer(tmp_path, record_format, settings):
    data = digits_mlt.compose()
    plan = layout.make_plan(
        data, record_format=record_format, examples_per_shard=400, shrinking=settings
    )
    writing.write(data, tmp_path / "local", plan)
    load = functools.partial(digits_mlt.compose, 0)
    beam.write(load, tmp_path / "beam", plan)
    local, distributed = (
        {path.name: path.read_bytes() for path in pathlib.Path(tmp_path, name).iterdir()}
        for name in ("local", "beam")
    )
    assert distributed == local
