"""``python -m bridge`` is the command ``pupil-bridge``."""

from bridge.cli import main

if __name__ == "__main__":
    main()
