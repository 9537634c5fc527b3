"""docs/design/storage.md is true: its example is what the code writes, its tables name what the code has."""

import re
from pathlib import Path

import pytest

from daskqueue_storage.format import RecordType
from daskqueue_storage.log import SegmentedLog
from daskqueue_storage.testing import SimFiles

DOCUMENT = Path(__file__).parents[2] / "docs" / "design" / "storage.md"

pytestmark = pytest.mark.skipif(not DOCUMENT.exists(), reason="the document is not part of the package")


def test_the_example_is_what_is_written() -> None:
    """Byte by byte."""
    files = SimFiles()
    with SegmentedLog("/log", files=files, uuid=bytes(range(16))) as log:
        log.append_many([b"one", b"two"])
        log.append_many([b"three!", b"4"])
    lines = re.findall(r"^([0-9a-f]{8})  ((?:[0-9a-f]{2} ?){1,16})(?: |$)", DOCUMENT.read_text(), re.MULTILINE)
    assert [int(at, 16) for at, _ in lines] == list(range(0, 376, 16))
    assert b"".join(bytes.fromhex(data) for _, data in lines) == files.tree()["/log/log/0000000000000001-00000001.log"]


def test_every_record_type_is_named() -> None:
    """With its number, in the table or in the list behind it."""
    text = DOCUMENT.read_text()
    for kind in RecordType:
        assert re.search(rf"\b{kind.value} (\| )?{kind.name}\b", text), kind


README = DOCUMENT.parents[2] / "packages" / "daskqueue-storage" / "README.md"


def test_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The log's lines and the queue's, as they stand."""
    monkeypatch.chdir(tmp_path)
    for script in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        exec(compile(script, "README.md", "exec"), {})
    assert capsys.readouterr().out == "0 b'something happened'\n[b'first', b'second']\n"
