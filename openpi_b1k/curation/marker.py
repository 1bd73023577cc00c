"""What a prepared data set says about itself: meta/prepared.json, sizes in meta/info.json, a line for every video."""

import copy
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, TextIO

from openpi_b1k.config.data import Modality
from openpi_b1k.curation.contents import Contents
from openpi_b1k.curation.encoders import encoder_of
from openpi_b1k.curation.recode import Result, Settings
from openpi_b1k.data.index.revision import read_revision
from openpi_b1k.data.shards import Shard

MARKER = "meta/prepared.json"
RECORDS = "meta/prepared"
CODECS = {"libx264": "h264", "libx264rgb": "h264", "libx265": "hevc"}


def begin(source: Contents, target: pathlib.Path, settings: Settings) -> None:
    """Marks `target` as begun, or finds that it was, with the same settings and from the same data.

    Other tasks, cameras and modalities may be added to it.

    Raises:
        ValueError: it was begun otherwise, or holds a data set that was not prepared by this.
    """
    path = target / MARKER
    if not path.is_file():
        if (target / "meta/info.json").is_file():
            raise ValueError(f"{target} holds a data set that is no prepared one; choose another --target")
        write_json(path, _content(source, settings, is_complete=False, videos=[]))
        return
    known, new = read(target), _content(source, settings, is_complete=False, videos=[])
    changed = [key for key in ("source_digest", "settings") if known[key] != new[key]]
    if changed:
        raise ValueError(
            f"{target} was begun with {', '.join(f'{key} {known[key]}' for key in changed)}, now it is "
            f"{', '.join(str(new[key]) for key in changed)}; choose another --target, or delete it"
        )


def finish(source: Contents, target: pathlib.Path, settings: Settings) -> None:
    """Writes meta/info.json for the new sizes and says in the marker that all is there."""
    known = read(target)
    videos = sorted({*known["videos"], *(video.key for video in source.index.videos)})
    write_json(target / "meta/info.json", prepared_info(source.info, settings, videos))
    write_json(target / MARKER, _content(source, settings, is_complete=True, videos=videos))


def read(root: pathlib.Path) -> dict[str, Any]:
    """Returns meta/prepared.json: source, source_revision, source_digest, settings, videos (keys), is_complete."""
    return json.loads((root / MARKER).read_text(encoding="utf-8"))


def prepared_info(info: dict[str, Any], settings: Settings, videos: Sequence[str]) -> dict[str, Any]:
    """Returns an info.json with the new sizes and codecs, and of the videos only those that were prepared."""
    new = copy.deepcopy(info)
    for key, feature in info["features"].items():
        if feature["dtype"] != "video":
            continue
        if key not in videos:
            del new["features"][key]
            continue
        axes = feature.get("names") or ("height", "width", "channels")
        sizes = {"height": settings.image_size, "width": settings.image_size}
        shape = [sizes.get(axis, value) for axis, value in zip(axes, feature["shape"], strict=True)]
        encoder = encoder_of(modality_of(key), settings.key_frame_distance, settings.crf)
        declared = {"video.codec": CODECS[encoder.codec], "video.pix_fmt": encoder.pixel_format}
        declared |= {f"video.{axis}": settings.image_size for axis in sizes}
        new["features"][key] = feature | {"shape": shape, "info": {**(feature.get("info") or {}), **declared}}
    return new


def modality_of(key: str) -> Modality:
    """Returns what a video of that name shows."""
    if "depth" in key:
        return "depth"
    return "segmentation" if "seg_instance" in key else "rgb"


def open_record(target: pathlib.Path, shard: Shard) -> TextIO:
    """Returns the shard's list of written videos, open for further lines."""
    path = target / RECORDS / f"{shard.number}-of-{shard.count}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a", encoding="utf-8")


def note(record: TextIO, result: Result) -> None:
    """Adds a video to the list. JSON has no infinity: an exact copy has no PSNR there."""
    line = dataclasses.asdict(result) | {"psnr": round(result.psnr, 2) if math.isfinite(result.psnr) else None}
    record.write(json.dumps(line) + "\n")
    record.flush()


def write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes a file that appears at its place when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def _content(source: Contents, settings: Settings, *, is_complete: bool, videos: list[str]) -> dict[str, Any]:
    return {
        "source": source.root.resolve().name,
        "source_revision": str(read_revision(source.index)),
        "source_digest": source.index.meta_digest[:32],
        "settings": dataclasses.asdict(settings),
        "videos": videos,
        "is_complete": is_complete,
    }
