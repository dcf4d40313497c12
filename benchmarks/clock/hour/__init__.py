"""An hour of drift with a restart of the phone in it, through the whole daemon into LSL."""
