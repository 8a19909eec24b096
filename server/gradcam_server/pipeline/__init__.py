"""One image from bytes to answer, within the limits on places, threads and memory."""
