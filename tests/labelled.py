"""Labels of a run by an annotator who knows the images."""

import json
from pathlib import Path
from typing import Any

from scalecap.run.folder import Run, checks, statements_digest

STEPS = (
    "pipeline.steps={init_caption: {stage: generate, prompt: Caption., image: image},"
    " sentences: {stage: split_sentences, text: init_caption},"
    " golden_sentences: {stage: verify, texts: sentences, prompt: 'True: {{ text }}'},"
    " raw_answers: {stage: generate, prompt: '{{ q }}', image: image, each: {q: golden_sentences}},"
    " final_details: {stage: verify, texts: raw_answers, prompt: 'True: {{ text }}'}}"
)


def labels_of(folder: Path, step: str, **changed: Any) -> list[dict[str, Any]]:
    """Correct verdicts on the first statement of each even row and the second of each odd one."""
    rows = list(Run(folder, "run").labelable_rows())
    found = []
    for number, row in enumerate(rows):
        scores = dict(checks(row))[step]
        text = scores[number % len(scores)]["text"]
        found.append(
            {
                "row_id": row["row_id"],
                "step": step,
                "text": text,
                "verdict": "no" if "cat" in text else "yes",
                "author": "me",
                "time": "2026-11-26T10:00:00Z",
                "run": statements_digest(rows, step),
                "draw": "random",
                **changed,
            }
        )
    return found


def write_labels(path: Path, labels: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(label) + "\n" for label in labels))
    return path
