"""Video files: chosen frames in, frames out."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.error import FFmpegError

from modules.errors import UserError
from modules.files import atomic_path


def read_frames(source: bytes | str | Path, indices: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """Decodes frames by their number, counted from 0 in the order of display.

    Args:
        source: an encoded video, or the path of one.
        indices: frame numbers, in any order, repeats allowed; None: all frames.

    Returns:
        (F, H, W, 3) uint8 RGB, in the order of `indices`.

    Raises:
        UserError: not a video, or it has fewer frames than asked for.
    """
    name = "the video" if isinstance(source, bytes) else str(source)
    wanted = None if indices is None else {int(i) for i in indices}
    if wanted is not None and (not wanted or min(wanted) < 0):
        raise ValueError(f"read_frames: indices must be at least one number from 0 up, got {indices!r}")
    found: dict[int, np.ndarray] = {}
    try:
        # Decoding starts at the front: a seek lands on a time stamp, but frame numbers are what is exact.
        with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source), "r") as container:
            for number, frame in enumerate(container.decode(video=0)):
                if wanted is None or number in wanted:
                    found[number] = frame.to_ndarray(format="rgb24")
                if wanted is not None and len(found) == len(wanted):
                    break
    except (FFmpegError, IndexError) as error:
        raise _not_a_video(name, error) from error
    if wanted is not None and len(found) < len(wanted):
        missing = min(wanted - found.keys())
        raise UserError(f"{name} has no frame {missing}; give the video that belongs to these poses")
    order = sorted(found) if indices is None else [int(i) for i in indices]
    if not order:
        raise UserError(f"{name} has no frames; give a file that ffmpeg can play")
    return np.stack([found[number] for number in order])


def encode_video(
    frames: np.ndarray, fps: float, lossless_colour: bool = False, crf: int = 18, preset: str = "fast"
) -> bytes:
    """`write_video` into memory: an mp4 file as bytes, the same bytes for the same frames."""
    buffer = io.BytesIO()
    _encode(buffer, frames, fps, lossless_colour, crf, preset)
    return buffer.getvalue()


def write_video(
    path: str | Path, frames: np.ndarray, fps: float, lossless_colour: bool = False, crf: int = 18
) -> None:
    """Writes an H.264 mp4 file, complete or not at all.

    Args:
        path: the file, with the suffix .mp4.
        frames: (F, H, W, 3) uint8 RGB.
        fps: frames per second.
        lossless_colour: keep colour at full resolution (yuv444p), for small training canvases; few players
            show such files. Otherwise yuv420p, which every player shows; an odd side grows by one pixel.
        crf: quality of x264, 0 (lossless) to 51.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        _encode(file, frames, fps, lossless_colour, crf)


def _encode(
    file: object, frames: np.ndarray, fps: float, lossless_colour: bool, crf: int, preset: str = "fast"
) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"write_video: got {frames.dtype} {frames.shape}, allowed is uint8 (F, H, W, 3)")
    with VideoEncoder(file, fps, lossless_colour, crf, preset) as encoder:
        for frame in frames:
            encoder.add(frame)


class VideoEncoder:
    """Writes an H.264 mp4 file frame by frame; a context manager. The same frames give the same bytes.

    Args:
        file: open for writing, binary, seekable.
        fps, lossless_colour, crf: see `write_video`.
        preset: of x264.
    """

    def __init__(
        self, file: object, fps: float, lossless_colour: bool = False, crf: int = 18, preset: str = "fast"
    ) -> None:
        self._pad = not lossless_colour
        self._container = av.open(file, "w", format="mp4")
        # One thread: the bytes then do not depend on the machine. No macroblock tree: on small canvases its result
        # differs from run to run.
        options = {"crf": str(crf), "preset": preset, "threads": "1", "x264-params": "mbtree=0"}
        self._stream = self._container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001), options=options
        )
        self._stream.pix_fmt = "yuv444p" if lossless_colour else "yuv420p"
        self._empty = True

    def add(self, frame: np.ndarray) -> None:
        """Appends a frame (H, W, 3) uint8 RGB; all must have one size."""
        if self._pad and (frame.shape[0] % 2 or frame.shape[1] % 2):
            # 4:2:0 stores one colour for 2 x 2 pixels: both sides must be even.
            frame = np.pad(frame, [(0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)], mode="edge")
        if self._empty:
            self._stream.height, self._stream.width = frame.shape[:2]
            self._empty = False
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        self._container.mux(self._stream.encode(picture))

    def __enter__(self) -> VideoEncoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._container.mux(self._stream.encode())
        finally:
            self._container.close()


def iter_frames(path: str | Path) -> Iterator[np.ndarray]:
    """All frames of a video file in order of display, (H, W, 3) uint8 RGB.

    Raises:
        UserError: not a video.
    """
    try:
        with av.open(str(path), "r") as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
    except (FFmpegError, IndexError) as error:
        raise _not_a_video(str(path), error) from error


@dataclass(frozen=True)
class VideoInfo:
    """What the header of a video says."""

    width: int  # px
    height: int  # px
    fps: float


def read_info(path: str | Path) -> VideoInfo:
    """Size and rate of a video file.

    Raises:
        UserError: not a video.
    """
    try:
        with av.open(str(path), "r") as container:
            stream = container.streams.video[0]
            return VideoInfo(stream.width, stream.height, float(stream.average_rate or 0))
    except (FFmpegError, IndexError) as error:
        raise _not_a_video(str(path), error) from error


def _not_a_video(name: str, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or "it has no video stream"
    return UserError(f"{name} cannot be read as a video ({reason}); give one that ffmpeg plays")
