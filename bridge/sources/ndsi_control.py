"""What a Companion device can be told: to record, and that something has happened.

A control is set by a command and answered by an update or an error on another socket; an event is whispered over ZRE
and comes back on the event sensor. Who asked gets the device's own answer, in a sentence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from bridge.control import Event, Record
from bridge.errors import Refused
from bridge.sources.ndsi_sensor import Notification, Sensor
from bridge.wire import ndsi

ANSWER_S = 4.0  # an app that starts a recording looks at its storage and its sensors first
ASK_AGAIN_S = 0.5
SENT_S = 2.0
MAX_SESSION_CHARS = 256
MAX_HOST_S = 1e9  # since this computer was started

ToDevice = Callable[[int], int | None]  # a host time in ns on the device's clock, None while that is not known
Whisper = Callable[[bytes], Awaitable[bool]]  # whether it has left


async def set_control(sensor: Sensor, control_id: str, value: bool | str, unanswered: str) -> None:
    """Sets a control and waits until the device says that it has this value.

    Raises Refused with what the device said instead, with ``unanswered`` when it said nothing, or when it has gone.
    """
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def notified(notification: Notification | None) -> None:
        match notification:
            case None:
                found = "the device has gone"
            case ndsi.ControlUpdate(control_id=told, value=now) if told == control_id and (type(now), now) == (
                type(value),
                value,
            ):
                found = ""
            case ndsi.ControlError(control_id=told, error_str=text) if told in (control_id, None):
                found = f"the device refuses: {text[: ndsi.NAME_MAX_CHARS] or 'without a reason'}"
            case _:
                return
        if not answer.done():
            answer.set_result(found)

    sensor.watchers.add(notified)
    try:
        sensor.send(ndsi.encode_set_control(sensor.attach.sensor_uuid, control_id, value))
        async with asyncio.timeout(ANSWER_S):
            while not answer.done():
                await asyncio.wait([answer], timeout=ASK_AGAIN_S)
                if not answer.done():  # the answer may be lost
                    sensor.send(ndsi.encode_refresh_controls(sensor.attach.sensor_uuid))
    except TimeoutError as error:
        raise Refused(unanswered) from error
    finally:
        sensor.watchers.discard(notified)
    if answer.result():
        raise Refused(answer.result())


async def record(sensor: Sensor | None, given: Record) -> str:
    """Starts or stops the recording through the hardware sensor. A session's name is set first. Raises Refused."""
    if sensor is None:
        raise Refused("the device shows no hardware sensor, through which a recording is started and stopped")
    start = given.action == "start"
    if sensor.controls.get("local_capture") is start:
        return "is recording already" if start else "is not recording"
    session = given.session if start else None
    if session is not None:
        if len(session) > MAX_SESSION_CHARS:
            raise Refused(f"a session's name has at most {MAX_SESSION_CHARS} characters, this one has {len(session)}")
        await set_control(sensor, "capture_session_name", session, "does not say that it has the session's name")
    unanswered = "does not say that it records" if start else "does not say that it has stopped recording"
    await set_control(sensor, "local_capture", start, unanswered)
    if not start:
        return "recording stopped"
    return "recording" if session is None else f"recording, session {session!r}"


async def send_event(whisper: Whisper, to_device: ToDevice, given: Event, now_ns: int) -> str:
    """Sends an event with the sender's time, or now's, on the device's clock. Raises Refused.

    While that clock is not known, an event without a time gets the app's when it arrives there.
    """
    if not given.text or given.text == ndsi.TIME_ECHO:
        raise Refused("an event needs a text" if not given.text else f"{given.text} is how clocks are compared")
    host_ns = now_ns
    if given.host_s is not None:
        if not abs(given.host_s) <= MAX_HOST_S:  # what is no number is not below it
            raise Refused(f"{given.host_s} is no time")
        host_ns = round(given.host_s * 1e9)
    device_ns = to_device(host_ns)
    if device_ns is None and given.host_s is not None:
        raise Refused("the device's clock is not known yet: an event can only be sent without a time")
    try:
        payload = ndsi.encode_event(given.text, device_ns)
    except ValueError as error:
        raise Refused(str(error)) from error
    if not await whisper(payload):
        raise Refused("the event could not be sent")
    if device_ns is None:
        return "sent, to be stamped when it arrives: the device's clock is not known yet"
    return "sent"
