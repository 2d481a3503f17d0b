"""The notebook runs from its first cell to its last, and a cell may run twice."""

from pathlib import Path

import pytest

import scalecap

pytestmark = pytest.mark.slow
NOTEBOOK = Path(scalecap.__file__).parent / "examples" / "first_steps.ipynb"


def test_first_steps(tmp_path: Path):
    nbformat = pytest.importorskip("nbformat", reason='needs pip install "scalecap[dev]"')
    nbclient = pytest.importorskip("nbclient", reason='needs pip install "scalecap[dev]"')
    pytest.importorskip("ipykernel", reason='needs pip install "scalecap[dev]"')
    pytest.importorskip("torch", reason='needs pip install "scalecap[cpu]"')
    notebook = nbformat.read(NOTEBOOK, 4)
    defines = next(cell for cell in notebook.cells if "@stage" in cell.source)
    notebook.cells.insert(notebook.cells.index(defines), nbformat.from_dict({**defines, "id": "twice"}))
    patient = {"timeout": 600, "startup_timeout": 600, "iopub_timeout": 600}
    resources = {"metadata": {"path": tmp_path}}
    nbclient.NotebookClient(notebook, **patient, resources=resources).execute()
    shown = {
        cell.id: "".join(
            output.get("text", "") + "".join(map(str, output.get("data", {}).values()))
            for output in cell.outputs
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    text = "\n".join(shown.values())
    assert "final caption: The scene" in text or "final caption: The picture" in text
    assert "num_rows: 4" in text
    assert "4 rows captioned, 0 failed" in text
    assert "<iframe srcdoc=" in text
    assert "!!" in shown[defines.id]
    assert "meaningless" not in text, "the images are of the embedded model's own world"
    assert "words difference" in text
    assert (tmp_path / "first_steps" / "default" / "report.html").is_file()
