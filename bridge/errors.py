"""The errors of the bridge, named by what the caller does next.

Anything else that is raised is a bug: the daemon ends loudly and systemd starts it again.
"""


class BridgeError(Exception):
    """Any error that the bridge foresees. Its text is one clear sentence for a person."""


class ConfigError(BridgeError):
    """The configuration cannot be used. The process ends with status 78 and is not restarted."""


class DeviceUnavailable(BridgeError):
    """A device, its network or a service on it is not there. Back off and try again, for ever."""


class MalformedMessage(BridgeError):
    """A peer sent bytes that break the protocol. Count them, drop them, go on."""


class OutOfBounds(BridgeError):
    """The process has outgrown a limit and has to begin anew."""


class Refused(BridgeError):
    """A command that cannot be carried out: by this device, or now."""


class UnknownCommand(BridgeError):
    """There is no such command."""
