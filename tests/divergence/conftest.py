import pytest

import planted


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The folder of each port: a tiny model in Hugging Face's format."""
    return planted.folders(tmp_path_factory.mktemp("ports"))
