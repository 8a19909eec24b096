"""Where the results of ``gradcam watch`` go.

    explained    the explanation that a result's map is of
    draw         the heat over a frame, and its caption
    caption      what is explained, and from where and when the frame is
    video        MP4 files
    json_lines   one JSON object a line
    parquet      shards with the columns of ``gradcam batch``
    view         a page in the browser of this machine
    unread       stdout and stderr when their reader is gone

An output has ``write(result)`` and ``close()``, which one thread calls. What was written is
readable at any time; ``at_risk`` says what may be incomplete if the process ends at once.
"""
