"""Reading and writing media through FFmpeg (PyAV): files, pipes, devices, servers."""
