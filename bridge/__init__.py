"""pupil-bridge: Pupil Labs eye trackers as honestly synchronised citizens of LSL and ROS 2."""

__version__ = "0.1.0"
