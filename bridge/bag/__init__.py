"""Pictures of recorded ROS 2 bags. Needs no ROS."""
