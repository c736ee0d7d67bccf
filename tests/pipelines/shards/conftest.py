"""Folders of shards that the tests of reading share, and copies of them to damage."""

import shutil

import pytest

from pipelines import record_formats
from pipelines.shards import layout, writing


@pytest.fixture(scope="session")
def folders(small_data, tmp_path_factory):
    """Folders of shards by format: 24 of train, in three groups of a stream, and 5 of test."""
    folders = {}
    for record_format in record_formats.FORMATS:
        folders[record_format] = tmp_path_factory.mktemp(record_format) / "shards"
        plan = layout.make_plan(small_data, record_format=record_format, examples_per_shard=10)
        writing.write(small_data, folders[record_format], plan)
    return folders


@pytest.fixture(params=record_formats.FORMATS)
def folder(folders, tmp_path, request):
    """A copy of one of them, to damage."""
    return shutil.copytree(folders[request.param], tmp_path / "shards")
