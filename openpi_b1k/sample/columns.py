"""What both layouts of the sample data share: columns, statistics, annotations, small files."""

import json
import pathlib

from openpi_b1k.sample.recording import Recording
from openpi_b1k.sample.render import SIZES
from openpi_b1k.sample.scene import button_object
from openpi_b1k.sample.world import FPS, GOALS


def video_feature(camera: str, codec: str, *, channel: str = "rgb", pixel_format: str = "yuv420p") -> dict:
    """Returns a camera's entry of info.json's features, at the size drawn here; `channel` is rgb or depth."""
    size = SIZES[camera]
    return {
        "dtype": "video",
        "shape": [size, size, 3],
        "names": ["height", "width", channel],
        "info": {
            "video.fps": float(FPS),
            "video.height": size,
            "video.width": size,
            "video.channels": 3,
            "video.codec": codec,
            "video.pix_fmt": pixel_format,
            "video.is_depth_map": channel == "depth",
            "has_audio": False,
        },
    }


def annotation(recording: Recording) -> dict:
    """Returns the episode's skills: move to the button, press it."""
    goal, press = recording.goal, max(recording.pressed_at - 2, 1)
    skills = [("move to", 1, "navigation", [0, press]), ("press", 67, "uncoordinated", [press, recording.length])]
    return {
        "task_name": goal.task_name.replace("_", " "),
        "data_folder": "",
        "meta_data": {"task_duration": recording.length, "valid_duration": [0, recording.length]},
        "primitive_annotation": [],
        "skill_annotation": [
            {
                "skill_idx": i,
                "skill_id": [skill_id],
                "skill_description": [description],
                "skill_type": [kind],
                "frame_duration": duration,
                "object_id": [[button_object(goal.button)]],
                "manipulating_object_id": [],
                "memory_prefix": [],
                "spatial_prefix": [],
                "mp_ef": [],
            }
            for i, (description, skill_id, kind, duration) in enumerate(skills)
        ],
    }


def task_lines() -> list[dict]:
    """Returns the lines of tasks.jsonl, the same in both generations."""
    return [{"task_index": goal.task_index, "task_name": goal.task_name, "task": goal.prompt} for goal in GOALS]


def write_json(path: pathlib.Path, content: dict) -> None:
    """Writes one JSON file; its directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4))


def write_lines(path: pathlib.Path, entries: list[dict]) -> None:
    """Writes JSON lines; the directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
