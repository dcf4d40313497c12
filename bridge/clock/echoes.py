"""The floors of round trips: the best of a few says of each direction how fast it can be.

Where samples do not bound the clock, or badly, these are all there is to tell the shape of the offset.
"""

from __future__ import annotations

from bridge.clock.floor import FloorMemory, FloorPoint
from bridge.clock.scatter import LEAST_NS, Scatter

FINE, COARSE, OLD = 4, 2, 10  # points of one block, of each larger size, of the largest
BLOCKS = (2, 2, 4, 4, 8)  # round trips in the first blocks, then 8 in each at most
BLOCK_S = 4.0  # a block is over after so long
PAIR_S = 0.2  # round trips as close as this were sent as a pair
HALF_LEAST = 0.1  # of half of what a block leaves open: its middle is never known better
COARSE_STAMPS = 0.2  # of the quantum, likewise: dithered pings meet all its phases


class EchoFloors:
    """Of both directions: ``replies`` (highest offsets) and ``requests`` (lowest), with the scatter of each."""

    def __init__(self, arrivals: Scatter) -> None:
        self.replies = FloorMemory(FINE, COARSE, OLD)
        self.requests = FloorMemory(FINE, COARSE, OLD)
        self.replies_scatter = Scatter()
        self.requests_scatter = Scatter()
        self._arrivals = arrivals
        self._block: list[tuple[float, float, float]] = []  # x_s, lowest and highest offset, ns
        self._blocks = 0
        self._open_ns = 0.0  # half of what the first blocks leave open, on average
        self._lead = False  # whether round trips tell more of the shape than arrivals do

    def add(self, x_s: float, lowest_ns: float, highest_ns: float, quantum_ns: int, era: int, rate_ns_s: float) -> None:
        """As ``Model.add_ping``. ``rate_ns_s`` carries the round trips of a block to its middle."""
        if self._block and x_s - self._block[0][0] > BLOCK_S:
            self._close(1.0, quantum_ns, era, rate_ns_s)
        self._block.append((x_s, lowest_ns, highest_ns))
        count = len(self._block)
        full = BLOCKS[min(self._blocks, len(BLOCKS) - 1)]
        paired = count > 1 and x_s - self._block[-2][0] < PAIR_S
        if count >= full or (paired and self._lead):
            self._close(count / BLOCKS[-1], quantum_ns, era, rate_ns_s)

    def drop_block(self) -> None:
        """Something has changed: what comes now must not be compared with what came before."""
        self._block.clear()

    def _close(self, share: float, quantum_ns: int, era: int, rate_ns_s: float) -> None:
        block, self._block = self._block, []
        self._blocks += 1
        x_s = sum(x for x, _, _ in block) / len(block)
        highest_ns = min(high - rate_ns_s * (x - x_s) for x, _, high in block)
        lowest_ns = max(low - rate_ns_s * (x - x_s) for x, low, _ in block)
        self.replies.add(FloorPoint(x_s, highest_ns, share, 1.0, era))
        self.replies_scatter.learn(self.replies.newest(), era)
        self.requests.add(FloorPoint(x_s, lowest_ns, share, 1.0, era))
        self.requests_scatter.learn(self.requests.newest(), era)
        half_ns = max((highest_ns - lowest_ns) / 2, LEAST_NS)
        self._lead = half_ns < self._arrivals.ns
        fastest_ns = min(high - low for _, low, high in block) / 2
        self._arrivals.path_ns = min(fastest_ns, self._arrivals.path_ns or fastest_ns)
        least_ns = max(HALF_LEAST * half_ns, COARSE_STAMPS * quantum_ns)
        guessed = self.replies_scatter.guessed
        if guessed:
            self._open_ns += (half_ns - self._open_ns) / self._blocks
        for scatter in (self.replies_scatter, self.requests_scatter):
            scatter.least_ns = least_ns
            if guessed:
                scatter.ns = max(self._open_ns / 2, least_ns)
