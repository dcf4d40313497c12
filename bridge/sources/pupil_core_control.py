"""What the bridge does to a Pupil Capture: recordings, calibrations, annotations. Each answer is what Capture says.

Source: docs.pupil-labs.com "Network API" and Pupil Capture 3.6. Pupil Remote answers "OK" to commands that come to
nothing; what they have come to is in the notifications. Annotation_Capture logs every annotation that it takes.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

from bridge.clock.host import monotonic_ns
from bridge.control import Calibrate, Event, Record
from bridge.errors import Refused
from bridge.pipeline import Device
from bridge.service.quiet import LineBudget
from bridge.sources.pupil_remote import NoAnswer, PupilRemote
from bridge.wire import pupil_core_notes as notes
from bridge.wire import pupil_remote as wire

log = logging.getLogger(__name__)

# The control socket waits 15 s for an answer.
RECORDING_S = 5.0  # to begin or end one, with all its files
CALIBRATION_S = 5.0
RESULT_S = 8.0  # a fit takes seconds
TAKEN_S = 2.0  # annotations are looked for once a picture of the scene camera
STARTED_S = (1.0, 1.0, 2.0)  # the same after the plugin was started, which takes a moment of which nothing is heard
FAR_NS = 24 * 3600 * 1_000_000_000  # no annotation is of another day: it is of another clock


class PupilCoreControl:
    """The actions of one Pupil Capture; ``remote`` is None while it is not there."""

    def __init__(self, device: Device) -> None:
        self.remote: PupilRemote | None = None
        self._device = device
        self._lines = LineBudget()
        self._complaint = ""  # in the log, since the last request
        self._waiting: list[tuple[Callable[[notes.Note], bool], asyncio.Future[notes.Note]]] = []
        device.actions |= {
            "record": self.record,
            "calibrate": self.calibrate,
            "annotate": self.annotate,
            "event": self.annotate,
        }

    def attach(self, remote: PupilRemote) -> None:
        self.remote = remote

    def detach(self) -> None:
        """Nothing is known of a Capture that is gone."""
        self.remote = None
        self._device.recording = None

    def on_note(self, note: notes.Note) -> None:
        """Takes what Capture says, whoever it was that asked for it."""
        name = self._device.descriptor.name
        if note.subject in (notes.RECORDING_STARTED, notes.RECORDING_STOPPED):
            self._device.recording = note.subject == notes.RECORDING_STARTED
        if note.subject != notes.LOGGED:
            level = self._lines.level(logging.INFO)
            log.log(level, "%s: %s %s", name, note.subject.replace(".", " "), note.text, extra={"DEVICE": name})
        for wanted, answer in self._waiting:
            if not answer.done() and wanted(note):
                answer.set_result(note)
                if note.subject == notes.LOGGED:
                    return  # one line for each annotation

    def on_log(self, line: notes.LogLine) -> None:
        """Takes a line of Capture's log: there it says why it does not do what it was asked for."""
        if line.level in ("warning", "error", "critical") or "already" in line.text:
            self._complaint = notes.printable(line.text)

    def _why(self, guess: str) -> str:
        """Why nothing has come of the last request."""
        return f"its log says {self._complaint!r}" if self._complaint else guess

    async def record(self, given: Record) -> str:
        """Starts or stops the recording. Raises Refused when Capture does not say that it did."""
        if given.action == "start":
            note = await self._effect(wire.start_recording(given.session), _is(notes.RECORDING_STARTED), RECORDING_S)
            if note is None:
                already = "it records already" if self._device.recording else "it may be recording already"
                raise Refused(f"Capture has not begun to record within {RECORDING_S:g} s: {self._why(already)}")
            return f"records to {note.text}" if note.text else "records"
        note = await self._effect((b"r",), _is(notes.RECORDING_STOPPED), RECORDING_S)
        if note is None:
            still = "it says that it still records" if self._device.recording else "it may not have been recording"
            raise Refused(f"Capture has not ended a recording within {RECORDING_S:g} s: {self._why(still)}")
        return f"has recorded to {note.text}" if note.text else "has stopped recording"

    async def calibrate(self, given: Calibrate) -> str:
        """Starts or stops the calibration. Raises Refused with Capture's reason when it has failed."""
        if given.action == "start":
            if await self._effect((b"C",), _is(notes.CALIBRATION_STARTED), CALIBRATION_S) is None:
                why = self._why("is it doing so already?")
                raise Refused(f"Capture has not begun to calibrate within {CALIBRATION_S:g} s: {why}")
            return "calibrates"
        stopped = False

        def result(note: notes.Note) -> bool:
            nonlocal stopped
            stopped |= note.subject == notes.CALIBRATION_STOPPED
            return note.subject in (notes.CALIBRATION_SUCCESSFUL, notes.CALIBRATION_FAILED)

        note = await self._effect((b"c",), result, RESULT_S)
        if note is None and not stopped:
            why = self._why("it may not have been calibrating")
            raise Refused(f"Capture has not ended a calibration within {RESULT_S:g} s: {why}")
        if note is None:
            return f"has stopped calibrating, and not said within {RESULT_S:g} s what has come of it"
        if note.subject == notes.CALIBRATION_FAILED:
            raise Refused(f"the calibration has failed: {note.text or 'Capture does not say why'}")
        return "is calibrated"

    async def annotate(self, given: Event) -> str:
        """Writes an annotation at a host time. Raises Refused while the device's clock is unknown, and when Capture
        does not take annotations."""
        now_ns = monotonic_ns()
        if given.host_s is not None and not (math.isfinite(given.host_s) and abs(given.host_s * 1e9 - now_ns) < FAR_NS):
            raise Refused(f"{given.host_s} s is not of the last day of this computer's clock (CLOCK_MONOTONIC, LSL)")
        host_ns = now_ns if given.host_s is None else round(given.host_s * 1e9)
        device_ns = self._device.clock.to_device(host_ns)
        if device_ns is None:
            raise Refused("its clock is not known yet, so no moment can be given in Pupil time")
        request = wire.annotation(given.text, device_ns)
        done = f"annotated at {device_ns / 1e9:.6f} s of Pupil time"
        if self._device.recording is False:
            done += "; Capture does not record now, so nothing keeps it"

        def taken(note: notes.Note) -> bool:
            return notes.is_taken(note, given.text)

        if await self._effect(request, taken, TAKEN_S) is not None:
            return done
        # Not before it is needed: starting it ends the one that runs, and forgets its user's own annotations.
        await self._send(wire.start_plugin(wire.ANNOTATION_PLUGIN))
        for wait_s in STARTED_S:
            if await self._effect(request, taken, wait_s) is not None:
                return done
        raise Refused(f"Capture has not taken the annotation: its plugin {wire.ANNOTATION_PLUGIN} does not run")

    async def _effect(
        self, request: wire.Request, wanted: Callable[[notes.Note], bool], wait_s: float
    ) -> notes.Note | None:
        """Asks for something and waits for what Capture says of it; None when it says nothing."""
        answer: asyncio.Future[notes.Note] = asyncio.get_running_loop().create_future()
        entry = (wanted, answer)
        self._complaint = ""
        self._waiting.append(entry)
        try:
            await self._send(request)
            async with asyncio.timeout(wait_s):
                return await answer
        except TimeoutError:
            return None
        finally:
            self._waiting.remove(entry)

    async def _send(self, request: wire.Request) -> None:
        """Raises Refused where Pupil Remote does not do as it is told."""
        if self.remote is None:
            raise Refused("Capture is not there")
        try:
            reply = (await self.remote.ask(*request))[0]
        except NoAnswer as error:
            raise Refused(str(error)) from error
        if reply != (wire.DONE if len(request) == 1 else wire.FORWARDED):
            raise Refused(f"Pupil Remote refuses it: {notes.printable(reply.decode(errors='replace'))}")


def _is(subject: str) -> Callable[[notes.Note], bool]:
    return lambda note: note.subject == subject
