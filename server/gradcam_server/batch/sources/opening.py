"""Opens the source that the INPUT of a command names."""

import glob
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from gradcam_server.batch.errors import InputError
from gradcam_server.batch.sources.base import Source
from gradcam_server.batch.sources.files import FileSource, read_list, walk
from gradcam_server.batch.sources.parquet import ParquetSource
from gradcam_server.batch.sources.tar import TarSource
from gradcam_server.images.file_names import SUFFIXES, describe_left_out, images_among

_LIST_SUFFIXES = (".list", ".lst", ".txt")


def open_source(where: str, *, column: str | None = None, outside: Path | None = None) -> Source:
    """Lists the images of a folder, a glob, a list of paths, Parquet files or tar shards.

    Args:
        where: A folder, which is searched recursively; a pattern; a .txt file with a path on each
            line, relative to its own folder; a .parquet file; a .tar file; or an image.
        column: The column of Parquet files that holds images or paths; None finds it.
        outside: A folder whose files are not inputs: the output folder.

    Raises:
        InputError: There are no images, or they cannot be read.
    """
    path = Path(where)
    left_out: Counter[str] = Counter()
    if path.is_dir():
        names = images_among(walk(where, outside), left_out)
        source: Source = FileSource("folder", names, root=where, left_out=left_out)
        if not len(source):
            also = f"; {describe_left_out(left_out)}" if left_out else ""
            raise InputError(f"{where}: no image in this folder or below it ({_hint(path)}{also})")
    elif path.exists():
        source = _open_file(where, path, column)
    elif glob.has_magic(where):
        source = _open_files(where, sorted(glob.iglob(where, recursive=True)), column)  # noqa: PTH207
    else:
        raise InputError(f"{where}: there is no such folder or file")
    if not len(source):
        also = f" ({describe_left_out(source.left_out)})" if source.left_out else ""
        raise InputError(f"{where}: there are no images in it{also}")
    return source


def _hint(folder: Path) -> str:
    for suffix in (".tar", ".parquet"):
        if any(folder.glob(f"*{suffix}")):
            return f"for {suffix} files give a pattern: '{folder}/*{suffix}'"
    return f"names must end in {', '.join(SUFFIXES)}"


def _open_file(where: str, path: Path, column: str | None) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return ParquetSource([where], column)
    if suffix == ".tar":
        return TarSource([where])
    if suffix in SUFFIXES:
        return FileSource("file", [where])
    if suffix in _LIST_SUFFIXES:
        left_out: Counter[str] = Counter()
        names = images_among(read_list(path), left_out, is_listed=True)
        try:
            return FileSource("list", names, root=str(path.parent), left_out=left_out)
        except OSError as error:
            raise InputError(f"{where}: it cannot be read as a list of paths ({error})") from error
    raise InputError(
        f"{where}: it must be a folder, a pattern, an image, or a file that ends in .parquet, .tar "
        f"or {', '.join(_LIST_SUFFIXES)} (a path on each line)"
    )


def _open_files(where: str, paths: Sequence[str], column: str | None) -> Source:
    if not paths:
        raise InputError(f"{where}: nothing matches this pattern")
    suffixes = {Path(path).suffix.lower() for path in paths}
    if suffixes == {".tar"}:
        return TarSource(paths)
    if suffixes == {".parquet"}:
        return ParquetSource(paths, column)
    root = str(Path(*takewhile(lambda part: not glob.has_magic(part), Path(where).parts)))
    left_out: Counter[str] = Counter()
    files = (path for path in paths if not Path(path).is_dir())
    source = FileSource("glob", images_among(files, left_out, root=root), left_out=left_out)
    if not len(source):
        raise InputError(
            f"{where}: of {len(paths)} names that match none ends in {', '.join(SUFFIXES)}, and "
            "they are not all .tar or all .parquet"
        )
    return source
