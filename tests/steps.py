"""A small pipeline of all the seed's stages, and changes to it."""

from typing import Any

STEPS: dict[str, dict[str, Any]] = {
    "init_caption": {"stage": "generate", "prompt": "Caption.", "image": "image"},
    "sentences": {"stage": "split_sentences", "text": "init_caption"},
    "golden": {"stage": "verify", "texts": "sentences", "prompt": "True: {{ text }}"},
    "raw_questions": {"stage": "generate", "prompt": "Ask: {{ s }}", "variables": {"s": "golden"}},
    "q_list": {"stage": "parse_questions", "text": "raw_questions"},
    "raw_answers": {
        "stage": "generate",
        "prompt": "{{ question }}",
        "image": "image",
        "each": {"question": "q_list"},
    },
    "details": {
        "stage": "verify",
        "texts": "raw_answers",
        "prompt": "Grounded: {{ text }}",
        "threshold": 0.9,
    },
    "final": {
        "stage": "fuse",
        "prompt": "{{ context }}+{{ object_info }}",
        "context": "golden",
        "object_info": "details",
        "position_info": "details",
        "initial": "init_caption",
    },
}
DATA = {"id": "text", "count": "number", "tags": "texts", "meta": "any"}


def changed(**steps: Any) -> dict[str, Any]:
    """STEPS with some replaced; None removes a step."""
    return {name: step for name, step in (STEPS | steps).items() if step is not None}


def one(step: Any, name: str = "x") -> dict[str, Any]:
    return {name: step}
