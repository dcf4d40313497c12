"""The events by which a recording on the phone is found again in one of LSL: ``lsl.time_sync.<session>.<number>``.

Source: lsl-relay 3.2.3, relay.py and xdf_cloud_time_sync.py. It sends one to the phone each minute, without a time: the
app stamps it when it arrives, writes it into its recording, and sends it on as every event. Its tool
``lsl_relay_time_alignment`` pairs, by their texts, those in an XDF file with those in Pupil Cloud's events.csv.
"""

from __future__ import annotations

import uuid

INTERVAL_S = 60.0


class TimeSyncSession:
    """The events of one device in one run of the bridge, whether it is there all the time or comes back."""

    def __init__(self) -> None:
        self.id = str(uuid.uuid4())
        self.next_ns = 0  # host time from which on the next one is due
        self._count = 0

    def text(self, now_ns: int) -> str:
        """The next event's text. Each number is given out once, also where its event is lost: the tool cannot do with
        two of one text, and does with a number that is missing."""
        number, self._count = self._count, self._count + 1
        self.next_ns = now_ns + round(INTERVAL_S * 1e9)
        return f"lsl.time_sync.{self.id}.{number}"
