"""From the words of a command line to sources."""

from pathlib import Path

from gradcam_server.watch.frames import FrameSource
from gradcam_server.watch.sources.errors import SourceError
from gradcam_server.watch.sources.events import Report, ignore
from gradcam_server.watch.sources.naming import SourceKind, SourceSpec


def open_source(
    spec: SourceSpec,
    *,
    fps: float | None = None,
    journal: Path | None = None,
    report: Report = ignore,
) -> FrameSource:
    """Returns the source that a spec names; its ``frames()`` opens it.

    Args:
        spec: From ``naming.parse_sources``.
        fps: Maximum number of frames per second of videos; folders ignore it.
        journal: For a folder, the file that says what is done; None is one for this folder.
        report: Receives broken frames, shed frames and reopenings, in the source's threads.

    Raises:
        SourceError: ``fps`` is not positive, the journal cannot be used, or a library is missing.
    """
    if fps is not None and not fps > 0:
        raise SourceError(f"{fps:g} frames per second; it must be more than 0")
    try:
        if spec.kind is SourceKind.FOLDER:
            from gradcam_server.watch.sources.folder import FolderSource

            return FolderSource(spec, report, journal)
        if spec.kind is SourceKind.FILE:
            from gradcam_server.watch.sources.video import VideoFile

            return VideoFile(spec, fps, report)
        from gradcam_server.watch.sources.live import LiveVideo

        return LiveVideo(spec, fps, report)
    except ImportError as error:
        raise SourceError(
            f"{spec.kind.value}s need the extra 'watch': pip install 'gradcam-server[watch]' "
            f"({error})"
        ) from error
