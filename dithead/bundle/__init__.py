"""The parts of a bundle: its graphs, its manifest, its files, and the libraries that run them.

``dithead.export`` writes bundles and ``dithead.runtime`` reads them; both use this package, and
neither imports the other. Importing it is cheap: ONNX Runtime and TensorRT are loaded on first use.
"""
