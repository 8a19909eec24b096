"""Offline jobs: explains many images and writes a folder of Parquet files.

    sources/         lists of images in a fixed order
    plan             cuts a list into parts, one Parquet shard each, and parts into shares
    explain_options  the options of a job's explanations
    stage            the protocol of stages, which explain images:
    local              an engine in this process
    remote             running servers, fed through a window (window)
    ray_data           engines on a Ray cluster
    schema           rows, one for each image in the order of the list, and their columns
    shards           the output folder, whose shards appear whole or not at all
    manifest         the file that says which job the folder holds
    job              runs a job: source -> parts -> stage -> rows -> shards
    gallery          a page of the job's most unusual and most confident images
    model            the identity of a job's model
    throughput       an engine with the batch sizes of highest throughput
    errors           errors that end a job

Shards that exist are finished. Only ``local``, and the actors of ``ray_data``, load a
model.
"""
