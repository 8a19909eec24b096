"""The sources of ``gradcam watch``: cameras, streams, video files and folders.

    naming       NAME=SOURCE: a name, a kind and a location, whose credentials stay secret
    opening      open_source: from these to a source
    live         a camera or stream, opened again when it goes
    video        a video file
    folder       a folder that fills; arrivals, writers and journal say which files are complete
                 and not done
    slot         FrameSlot: from a source's thread to the event loop
    events       what a source reports beside its frames

Each source yields its frames in the thread that asks for them, and ends when another thread calls
``close``. Call ``done`` with each frame when its result is written: a folder then remembers it.
"""
