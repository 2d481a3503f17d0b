"""The wheel carries all that the program needs, and works from any folder."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from processes import python
from runs import captions

pytest.importorskip("hatchling", reason='needs pip install "scalecap[dev]"')

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_an_installed_wheel_captions_the_sample(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "installed")
    words = ("-P", "-m", "scalecap", "data.limit=1", "output=run", "progress=false")
    shown = python(*words, path=str(tmp_path / "installed"))
    assert shown.returncode == 0, shown.stderr
    assert "Done: 1 row captioned" in shown.stdout
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert len(captions("run")) == 1
