"""What an imported rollout's annotation says, and small files."""

import pathlib
from typing import Any

from openpi_b1k.curation.rollouts.numbering import Entry


def annotation(entry: Entry) -> dict[str, Any]:
    """Returns the annotation of a rollout: all of it is one skill, described by what the policy was told.

    Nobody has said which skill was under way when. So a prompt of level 1 is that of level 0, and no frame is left out
    as idle. openpi-comet does alike: it stretches a demonstration's first skill over the rollout.
    """
    whole = [0, entry.facts.length]
    skill = {
        "skill_idx": 0,
        "skill_id": [],
        "skill_description": [entry.prompt],
        "skill_type": [],
        "frame_duration": whole,
        "object_id": [[]],
        "manipulating_object_id": [],
        "memory_prefix": [],
        "spatial_prefix": [],
        "mp_ef": [],
    }
    return {
        "task_name": entry.task.name.replace("_", " "),
        "data_folder": "",
        "meta_data": {"task_duration": entry.facts.length, "valid_duration": whole},
        "primitive_annotation": [],
        "skill_annotation": [skill],
    }


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file; its directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
