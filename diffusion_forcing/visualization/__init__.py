"""Images and videos as uint8 arrays, made from arrays: no file, no window, no global state of the plotting library."""
