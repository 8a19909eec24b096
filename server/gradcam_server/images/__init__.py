"""Images and heat maps as arrays: from the bytes of a request to the bytes of an answer.

file_names.py  which files are images, by their names
header.py      the size and structure that a file declares
decode.py      bytes -> pixels
geometry.py    pixels -> the model's input; heat maps -> the original image
render.py      heat maps -> arrays, PNG and JPEG
work_cost.py   estimated CPU time of decoding and rendering
"""
