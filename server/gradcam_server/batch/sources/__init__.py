"""Sources of images: lists with a fixed order, of which any part can be read.

    base      Item, the Source protocol, and parts that all sources use
    files     folders, patterns, text files with a path on each line, single images
    tar       WebDataset's tar files
    parquet   Parquet files
    opening   open_source: from the INPUT of a command to a source

A source decodes nothing, keeps its list compactly (millions of images take megabytes), and can be
pickled, so that other processes read parts of it. ``images.file_names`` says which names are
those of images, for all sources alike.
"""
