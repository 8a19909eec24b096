"""``gradcam watch``: explains what cameras, videos and folders bring, while it comes.

    sources (threads) -> FrameSlot (the newest frame; sheds) -> Watcher (event loop, deadlines)
        -> temporal (reuse and audit, held target, smoothed map, cuts) -> outputs, counters

frames           what the parts hand to each other
watcher          the loop: turns, calls, results in order
pacing           when the next call begins, so that calls do not wait for each other
explaining       calls with deadlines, retries and pauses
stream_state     what is kept of one source from frame to frame
"""
