"""A video stream's topics: the device's own JPEG or H.264 untouched, the camera's intrinsics, raw images on demand.

Raw images are large: a thread of their own decodes and publishes them, the latest of each camera, while somebody
subscribes. Nothing else waits for them.
"""

from __future__ import annotations

import array
import io
import logging
import os
import threading
from collections import Counter, deque
from importlib import import_module
from typing import Any, Final

import rclpy.utilities
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from bridge.clock import Mapped
from bridge.errors import BridgeError
from bridge.shipped import shipped
from bridge.sinks.ros2.desk import Desk
from bridge.sinks.ros2.h264 import H264Decoder, Undecodable
from bridge.sinks.ros2.stamps import write
from bridge.streams import Frame, Sample, StreamDescriptor, VideoLayout

log = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 2.0
PROFILE: Final = "config/fastdds-large-images.xml"
# The Fast DDS of Jazzy reads this one alone, that of Kilted FASTDDS_DEFAULT_PROFILES_FILE as well.
PROFILE_VARIABLE: Final = "FASTRTPS_DEFAULT_PROFILES_FILE"
CODED_WAITING: Final = 60  # frames of H.264 of a camera, two seconds
LARGE_BYTES: Final = 500_000  # what a segment of Fast DDS' shared memory has room for by default
RAW_ENCODINGS: Final = {"gray": ("mono8", 1), "bgr": ("bgr8", 3)}
SHOWN: Final = ("jpeg", "h264", "yuv", *RAW_ENCODINGS)  # formats of which raw images can be made


class VideoTopics:
    """All topics of one camera."""

    def __init__(
        self, desk: Desk, stream: StreamDescriptor, layout: VideoLayout, images: ImageThread, dropped: Counter[str]
    ) -> None:
        device, self.camera = stream.device.name, layout.camera
        self.device = device
        self._desk = desk
        self._images = images
        self.dropped = dropped
        self.header = Header(frame_id=desk.frame("{camera}/image_raw", device, camera=layout.camera))
        self._compressed = desk.publisher(device, "{camera}/image_raw/compressed", camera=layout.camera)
        self.raw = desk.publisher(device, "{camera}/image_raw", camera=layout.camera)
        self.publishers: list[Any] = [self._compressed, self.raw]
        self._jpeg = CompressedImage(header=self.header, format="jpeg")
        self._video: Any = None  # made with the first frame of H.264
        self._video_message: Any = None
        self._info: Any = None
        if layout.intrinsics is not None:
            camera = layout.intrinsics
            self._info = desk.publisher(device, "{camera}/camera_info", camera=layout.camera)
            self.publishers.append(self._info)
            self._info_message = CameraInfo(
                header=self.header,
                width=camera.width_px,
                height=camera.height_px,
                distortion_model=camera.model,
                d=list(camera.d),
                k=list(camera.k),
                r=list(camera.r),
                p=list(camera.p),
            )
        self._told_size = False
        self.told_codec = False

    def publish(self, sample: Sample, mapped: Mapped, host_ns: int) -> None:
        frame = sample.payload
        assert isinstance(frame, Frame)
        stamp_ns = self._desk.stamps.of(sample, host_ns)
        write(self.header.stamp, stamp_ns)
        if self._info is not None and self._info.get_subscription_count():
            self._publish_info(frame)
        if frame.format == "jpeg" and self._compressed.get_subscription_count():
            # A numpy array or a memoryview would be copied element by element: 3 to 8 ms.
            self._jpeg.data = array.array("B", frame.data)
            self._compressed.publish(self._jpeg)
        elif frame.format == "h264":
            self._publish_video(frame)
        if frame.format in SHOWN:
            if self.raw.get_subscription_count():
                self._images.show(self, frame, stamp_ns)
            else:
                self._images.rest(self)

    def _publish_info(self, frame: Frame) -> None:
        message = self._info_message
        if (frame.width_px, frame.height_px) == (message.width, message.height):
            self._info.publish(message)
        elif not self._told_size:
            self._told_size = True
            log.warning(
                "%s: the %s camera sends %d x %d, but its intrinsics are for %d x %d: no camera_info is published",
                *(self.device, self.camera, frame.width_px, frame.height_px, message.width, message.height),
                extra={"DEVICE": self.device},
            )

    def _publish_video(self, frame: Frame) -> None:
        if self._video is None:
            kind = CompressedImage
            if "foxglove_msgs" in self._desk.packages:
                kind = self._desk.type("foxglove_msgs/msg/CompressedVideo")
            self._video = self._desk.publisher(self.device, "{camera}/video", kind=kind, camera=self.camera)
            self.publishers.append(self._video)
            self._video_message = kind(format="h264")
            if kind is CompressedImage:
                self._video_message.header = self.header
            else:
                self._video_message.timestamp = self.header.stamp
                self._video_message.frame_id = self.header.frame_id
        if self._video.get_subscription_count():
            self._video_message.data = array.array("B", frame.data)
            self._video.publish(self._video_message)

    def close(self) -> None:
        """After this no raw image is published."""
        self._images.forget(self)


class ImageThread:
    """Decodes and publishes raw images, the latest of each camera. Starts when the first is asked for.

    H.264 has to be decoded whole: beyond `CODED_WAITING` frames all that wait are dropped, up to the next key frame.
    """

    def __init__(self) -> None:
        self._latest: dict[VideoTopics, tuple[Frame, int]] = {}
        self._coded: dict[VideoTopics, deque[tuple[Frame, int]]] = {}
        self._decoders: dict[VideoTopics, H264Decoder] = {}
        self._wanted = threading.Condition()
        self._publishing = threading.Lock()  # held while a publisher is in use
        self._thread: threading.Thread | None = None
        self._ended = False
        self._told = False

    def show(self, topics: VideoTopics, frame: Frame, stamp_ns: int) -> None:
        """Takes a frame; one of the same camera that still waits is dropped, and counted."""
        if frame.width_px * frame.height_px * 3 > LARGE_BYTES:
            self._warn(topics)
        with self._wanted:
            if frame.format == "h264":
                waiting = self._coded.setdefault(topics, deque())
                if len(waiting) >= CODED_WAITING:
                    topics.dropped["image_superseded"] += len(waiting)
                    waiting.clear()
                waiting.append((frame, stamp_ns))
            else:
                if topics in self._latest:
                    topics.dropped["image_superseded"] += 1
                self._latest[topics] = frame, stamp_ns
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ros2 images", daemon=True)
                self._thread.start()
            self._wanted.notify()

    def _warn(self, topics: VideoTopics) -> None:
        if self._told or "fastrtps" not in rclpy.utilities.get_rmw_implementation_identifier():
            return
        self._told = True
        if os.environ.get(PROFILE_VARIABLE):
            return
        try:
            path = str(shipped(PROFILE))
        except BridgeError as error:
            path = str(error)
        log.warning(
            "%s: somebody subscribes to raw images, of which Fast DDS loses many by default; "
            "start the bridge with %s=%s",
            *(topics.device, PROFILE_VARIABLE, path),
            extra={"DEVICE": topics.device},
        )

    def forget(self, topics: VideoTopics) -> None:
        with self._wanted:
            self._latest.pop(topics, None)
            self._coded.pop(topics, None)
        with self._publishing:  # what it is at has been published
            self._decoders.pop(topics, None)

    def rest(self, topics: VideoTopics) -> None:
        """Nobody looks at this camera now: its decoder is not kept."""
        if topics in self._decoders:
            self.forget(topics)

    def close(self) -> None:
        with self._wanted:
            self._ended = True
            self._wanted.notify()
        if self._thread is not None:
            self._thread.join(JOIN_TIMEOUT_S)

    def _run(self) -> None:
        while True:
            with self._wanted:
                while not (self._latest or self._coded or self._ended):
                    self._wanted.wait()
                if self._ended:
                    return
                coded: deque[tuple[Frame, int]] = deque()
                if self._latest:
                    topics = next(iter(self._latest))
                    frame, stamp_ns = self._latest.pop(topics)
                else:
                    topics = next(iter(self._coded))
                    coded = self._coded.pop(topics)
                self._publishing.acquire()
            try:
                if coded:
                    self._publish_coded(topics, coded)
                else:
                    self._publish(topics, frame, stamp_ns)
            finally:
                self._publishing.release()

    def _publish_coded(self, topics: VideoTopics, frames: deque[tuple[Frame, int]]) -> None:
        """Decodes them all and publishes the last."""
        decoder = self._decoders.get(topics)
        if decoder is None:
            if not _can_decode(topics):
                topics.dropped["image_undecodable"] += len(frames)
                return
            decoder = self._decoders[topics] = H264Decoder()
        decoded = 0
        for frame, stamp_ns in frames:
            try:
                decoded += decoder.take(frame, stamp_ns)
            except Undecodable as error:
                topics.dropped["image_undecodable"] += 1
                log.debug("%s: a frame of %s cannot be decoded: %s", topics.device, topics.camera, error)
        if (picture := decoder.picture()) is not None:
            topics.dropped["image_superseded"] += decoded - 1
            width, height = picture.width_px, picture.height_px
            data = array.array("B", picture.rgb)
            image = Image(width=width, height=height, encoding="rgb8", step=width * 3, data=data)
            self._send(topics, image, picture.stamp_ns)

    def _publish(self, topics: VideoTopics, frame: Frame, stamp_ns: int) -> None:
        image = self._decoded(frame)
        if image is None:
            topics.dropped["image_undecodable"] += 1
        else:
            self._send(topics, image, stamp_ns)

    @staticmethod
    def _send(topics: VideoTopics, image: Image, stamp_ns: int) -> None:
        image.header.frame_id = topics.header.frame_id
        write(image.header.stamp, stamp_ns)
        topics.raw.publish(image)

    @staticmethod
    def _decoded(frame: Frame) -> Image | None:
        """The image of a frame; None where its bytes are none."""
        width, height = frame.width_px, frame.height_px
        encoding, channels = RAW_ENCODINGS.get(frame.format, ("rgb8", 3))
        data: bytes | None = frame.data
        if frame.format == "jpeg":
            data = rgb_of_jpeg(frame)
        elif frame.format == "yuv":
            data = rgb_of_yuv(frame)
        if data is None or len(data) != width * height * channels:
            return None
        return Image(width=width, height=height, encoding=encoding, step=width * channels, data=array.array("B", data))


def _can_decode(topics: VideoTopics) -> bool:
    try:
        import_module("av")
    except ImportError as error:
        if not topics.told_codec:
            topics.told_codec = True
            text = "%s: raw images of H.264 need the Python package av: %s"
            log.warning(text, topics.device, error, extra={"DEVICE": topics.device})
        return False
    return True


def rgb_of_jpeg(frame: Frame) -> bytes | None:
    """Its pixels; None where its bytes are none, or of another size."""
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(frame.data), formats=("JPEG",)) as opened:
            if opened.size != (frame.width_px, frame.height_px):  # before it takes memory
                return None
            return opened.convert("RGB").tobytes()
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError):  # as Pillow says it
        return None


def rgb_of_yuv(frame: Frame) -> bytes | None:
    """The pixels of planes Y, U, V; None where they cannot be that. Values are JPEG's (BT.601, 0 to 255): Capture makes
    the planes out of the camera's JPEG. The length tells whether colours are at half width and half height, at half
    width (Capture's), or at every pixel."""
    from PIL import Image as Pillow

    size = width, height = frame.width_px, frame.height_px
    luma, half = width * height, (width + 1) // 2
    for columns, rows in ((half, (height + 1) // 2), (half, height), size):
        if luma and len(frame.data) == luma + 2 * columns * rows:
            break
    else:
        return None
    data, chroma = frame.data, columns * rows
    planes = [Pillow.frombuffer("L", size, data[:luma], "raw", "L", 0, 1)]
    whole = columns * (2 if columns < width else 1), rows * (2 if rows < height else 1)  # a pixel more where it is odd
    for start in (luma, luma + chroma):
        plane = Pillow.frombuffer("L", (columns, rows), data[start : start + chroma], "raw", "L", 0, 1)
        planes.append(plane.resize(whole, Pillow.Resampling.NEAREST).crop((0, 0, width, height)))
    return Pillow.merge("YCbCr", planes).convert("RGB").tobytes()
