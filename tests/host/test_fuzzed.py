"""What fuzzing found among pictures, captions and requests (tests/fuzz/fuzz.py)."""

from pathlib import Path

import pytest
import torch
from fuzz import host_input

CORPUS = Path(host_input.__file__).parent / "corpus"


def inputs(name: str) -> list[bytes]:
    found = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    assert found
    return found


def test_pictures_and_captions_are_read_or_refused():
    for content in inputs("photo"):
        host_input.photo(content)


@pytest.mark.usefixtures("model_folder")
def test_requests_are_answered_or_refused_and_lose_nothing(tmp_path_factory):
    with torch.inference_mode(False):
        site = host_input.Site(tmp_path_factory.mktemp("site"))
        try:
            for content in inputs("request"):
                site.answer(content)
        finally:
            site.close()
