"""Exports: compiled graphs in a folder, written with TensorFlow and served without it.

writer            writes an export
openvino_writer   its graphs for OpenVINO
stablehlo_writer  its graphs in StableHLO, for XLA
quantize          int8 quantisation of a graph
samples           images to calibrate and compare with
agreement         compares the answers with those of float32
manifest          the JSON file that describes an export
typed_json        JSON as dataclasses
files             reads and checks the files of an export
loaded_graphs     graphs that are read and checked, of any format
openvino_graphs   those of OpenVINO
stablehlo_graphs  those in StableHLO
"""
