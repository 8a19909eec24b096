"""An image from bytes to pixels, to the model's input, and heat maps back onto it."""
