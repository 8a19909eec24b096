"""Offline jobs over many images.

    Source (inputs.py)   lists the images, always in the same order
      -> parts           fixed ranges of the list, each a Parquet shard of a fixed name (plan.py)
      -> stage           explains them: local.py, remote.py or ray_data.py
      -> rows            one for each image, in the order of the list (schema.py)
      -> shards          appear whole or not at all (shards.py)

``job.py`` runs it; the shards that are there are what is finished, and ``manifest.py`` says of
which job they are. ``gallery.py`` shows what came out. Only ``local.py``, and the actors of
``ray_data.py``, load a model.
"""
