"""Pictures and films as uint8 arrays, from arrays: no file, no window, no global state of the plot library."""
