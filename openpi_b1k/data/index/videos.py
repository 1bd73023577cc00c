"""Which videos of a data set show what the config asks for."""

import pathlib
from typing import Any

from openpi_b1k.config.data import EXTRA_CAMERA, Modality, SourceConfig
from openpi_b1k.data.index.episodes import Video
from openpi_b1k.robots import r1pro


def find_videos(root: pathlib.Path, info: dict[str, Any], source: SourceConfig) -> tuple[Video, ...]:
    """Returns the rgb of each camera, then depth and segmentation of one, as the data set stores them.

    Raises:
        ValueError: the data set does not have one of them, or does not say its image size.
    """
    extra: list[Modality] = sorted(set(source.modalities) - {"rgb"})  # depth, then segmentation
    return (
        *(_find(root, info["features"], camera, "rgb") for camera in source.cameras),
        *(_find(root, info["features"], EXTRA_CAMERA, modality) for modality in extra),
    )


def _find(root: pathlib.Path, features: dict[str, Any], camera: str, modality: Modality) -> Video:
    keys = next(known for known in r1pro.CAMERAS if known.name == camera).video_keys(modality)
    key = next((key for key in keys if key in features), None)
    if key is None:
        held = ", ".join(key for key, feature in features.items() if feature["dtype"] == "video")
        if modality == "rgb":
            raise ValueError(
                f"{root} has no video of camera {camera!r}; it has {held or 'none'}: see --data.cameras (looked for "
                f"{', '.join(keys)})"
            )
        raise ValueError(
            f"{root} has no {modality} video of camera {camera!r}; it has {held or 'none'}: leave {modality} out of "
            "--data.modalities, or use data that have it (the 2026 release has no segmentation)"
        )
    axes = features[key].get("names") or ("height", "width", "channels")
    shape = dict(zip(axes, features[key]["shape"], strict=False))
    if features[key]["dtype"] != "video" or not {"height", "width"} <= set(shape):
        raise ValueError(
            f"{key} of {root} must be a video with a height and a width; meta/info.json says {features[key]}"
        )
    return Video(camera, modality, key, int(shape["height"]), int(shape["width"]))
