"""Links: how frames travel between a worker and a server.

tcp and unix carry values in the frame; shm is a unix link whose values lie in shared memory; memory joins two ends of
one process for tests and the simulator. All four carry the same frames through `stream.FrameReader` and
`stream.FrameWriter`.
"""
