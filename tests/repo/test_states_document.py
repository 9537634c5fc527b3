"""docs/design/states.md says what the table of moves says."""

import subprocess
import sys
from pathlib import Path

import pytest


def draw(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script of the tree in `root`."""
    script = str(root / "scripts" / "draw_states.py")
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def copied(root: Path, tmp_path: Path) -> Path:
    """A tree with what the script needs and nothing else."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "draw_states.py").write_text((root / "scripts" / "draw_states.py").read_text())
    source = root / "packages" / "daskqueue-core"
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "daskqueue-core").symlink_to(source, target_is_directory=True)
    return tmp_path


def test_the_document_is_current(root: Path) -> None:
    """Whoever changes the table draws it again: python scripts/draw_states.py."""
    done = draw(root, "--check")
    assert done.returncode == 0, done.stderr


def test_check_notices_a_difference(copied: Path) -> None:
    """It exits 1 and writes nothing, without the document and with another one; drawn, it is content."""
    document = copied / "docs" / "design" / "states.md"
    assert draw(copied, "--check").returncode == 1
    assert not document.exists()
    assert draw(copied).returncode == 0
    assert draw(copied, "--check").returncode == 0
    drawn = document.read_text()
    document.write_text(drawn.replace("EXPIRED", "LATE", 1))
    done = draw(copied, "--check")
    assert (done.returncode, "is not current" in done.stderr) == (1, True)
    assert document.read_text() != drawn
