"""Exports: compiled graphs in a folder, written with TensorFlow and served without it.

writer      writes an export
quantize    int8 quantisation of a graph
samples     images to calibrate and compare with
agreement   compares a reduced precision with float32
manifest    the JSON file that describes an export
typed_json  JSON as dataclasses
files       reads and checks the files of an export
graphs      reads and checks the graphs of an export
"""
