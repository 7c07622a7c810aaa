"""With `--dist loadgroup`, all tests of one task are in one process: what they look at is made once."""

import pytest

import envs  # noqa: F401, before a test imports MuJoCo, which chooses then how it draws


def pytest_collection_modifyitems(items):
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if "env_id" in params:
            item.add_marker(pytest.mark.xdist_group(params["env_id"]))
