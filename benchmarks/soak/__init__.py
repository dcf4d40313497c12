"""The soak: the whole daemon for half an hour among devices and readers that fail, and what it costs."""
