from pathlib import Path

import pytest
from goldens import FIXTURES


@pytest.fixture
def fixtures() -> Path:
    """The folder of the golden files."""
    return FIXTURES
